//! Lists of transactions: pages in the order of making, of one payer or of all, and of nobody else's.

use serde_json::{Value, json};

use crate::bank::{done, refused};
use crate::client::Connection;
use crate::daemon::{Daemon, enrol};
use crate::ocra_token::OcraToken;
use crate::transactions::{Holder, NOW, PLAIN, cancel, id, transaction};

async fn page(bank: &Connection, query: &str) -> (Vec<String>, Value) {
    let page = done(&bank.get(&format!("/v1/transactions{query}")).await.unwrap());
    assert_eq!(page.as_object().unwrap().len(), 2);
    (page["items"].as_array().unwrap().iter().map(id).collect(), page["next"].clone())
}

/// All pages of so many; each but the last is full.
async fn walk(bank: &Connection, filter: &str, limit: usize) -> Vec<String> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let (items, next) = page(bank, &format!("?limit={limit}{filter}{after}")).await;
        let last = items.last().cloned();
        all.extend(items.iter().cloned());
        if next.is_null() {
            return all;
        }
        assert_eq!((items.len(), next.as_str()), (limit, last.as_deref()));
        after = format!("&after={}", next.as_str().unwrap());
    }
}

#[tokio::test]
async fn they_are_paged_in_the_order_of_making() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let stranger = daemon.connect("bank-b").await;
    assert_eq!(page(&bank, "").await, (vec![], Value::Null));
    let payers = ["acct-1", "acct-2", "Z\u{fc}rich & S\u{f6}hne+%?"];
    let mut holders = Vec::new();
    for payer in payers {
        holders.push(Holder::enrol(&bank, PLAIN, payer).await);
    }
    let foreign = Holder::enrol(&stranger, PLAIN, "acct-1").await.asked(&stranger).await;
    let mut made: Vec<(usize, String)> = Vec::new();
    for number in 0..63 {
        let payer = [0, 1, 0, 2][number % 4];
        daemon.set_clock(NOW + number as u64);
        made.push((payer, id(&holders[payer].asked(&bank).await)));
    }
    // Those of one moment come in the order of their ids.
    let last = made.len();
    for _ in 0..7 {
        made.push((1, id(&holders[1].asked(&bank).await)));
    }
    made[last - 1..].sort_by(|a, b| a.1.cmp(&b.1));
    let of = |payer: Option<usize>| -> Vec<String> {
        let of = made.iter().filter(|(whose, _)| payer.is_none_or(|payer| payer == *whose));
        of.map(|(_, id)| id.clone()).collect()
    };
    let filters = [
        ("", of(None)),
        ("&payer=acct-1", of(Some(0))),
        ("&payer=acct-2", of(Some(1))),
        ("&payer=Z%C3%BCrich%20%26%20S%C3%B6hne%2B%25%3F", of(Some(2))),
        ("&payer=acct-3", vec![]),
        ("&payer=ACCT-1", vec![]),
        ("&payer=acct", vec![]),
    ];
    for (filter, expected) in &filters {
        for limit in [1, 2, 7, 32, 66, 69, 70, 71, 100] {
            assert_eq!(walk(&bank, filter, limit).await, *expected, "{filter} by {limit}");
        }
    }
    let (items, next) = page(&bank, "").await;
    assert_eq!((items.len(), next.as_str()), (50, Some(&*made[49].1)), "50 where nothing is said");
    assert_eq!(page(&bank, &format!("?after={}", made[69].1)).await, (vec![], Value::Null));
    assert_eq!(page(&stranger, "").await, (vec![id(&foreign)], Value::Null));

    // Whatever became of them, they stay where they are, and show as they are.
    done(&cancel(&bank, &made[0].1).await);
    daemon.set_clock(NOW + 299);
    let listed = done(&bank.get("/v1/transactions?limit=100").await.unwrap());
    for item in listed["items"].as_array().unwrap() {
        assert_eq!(*item, transaction(&bank, &id(item)).await);
    }
    daemon.set_clock(NOW + 301);
    let listed = done(&bank.get("/v1/transactions?limit=2").await.unwrap());
    let states: Vec<_> = listed["items"].as_array().unwrap().iter().map(|item| &item["state"]).collect();
    assert_eq!(states, ["cancelled", "expired"], "nobody is shown that it waits when its time is over");
    assert_eq!(walk(&bank, "", 9).await, of(None));
}

#[tokio::test]
async fn what_no_list_asks_for_is_refused() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let stranger = daemon.connect("bank-b").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let own = id(&holder.asked(&bank).await);
    let foreign = id(&Holder::enrol(&stranger, PLAIN, "acct-1").await.asked(&stranger).await);
    let credential = enrol(&bank, &OcraToken::new(PLAIN).enrolment("acct-2")).await;
    let absent = "txn_00000000000000000000000000";
    for after in [&*foreign, absent, &credential, &own[..29], &own.to_uppercase(), "", "x", "txn_", "%20"] {
        let answer = bank.get(&format!("/v1/transactions?after={after}")).await.unwrap();
        assert_eq!(refused(&answer, 422, "invalid")["field"], "after", "{after}");
        let answer = bank.get(&format!("/v1/transactions?payer=acct-1&after={after}")).await.unwrap();
        assert_eq!(refused(&answer, 422, "invalid")["field"], "after", "{after}");
    }
    for limit in ["0", "101", "65535"] {
        let answer = bank.get(&format!("/v1/transactions?limit={limit}")).await.unwrap();
        assert_eq!(refused(&answer, 422, "invalid")["field"], "limit");
    }
    for query in [
        "limit=",
        "limit=-1",
        "limit=65536",
        "limit=x",
        "limit=1.0",
        "limit=%31%20",
        "limit=1&limit=1",
        "payer=",
        "payer=a%00b",
        "payer=%FF",
        "payer=a&payer=b",
        "state=pending",
        "account=acct-1",
        "Limit=1",
        "unmistakable=1",
        "payer=%E2%80%AEx",
    ] {
        let answer = bank.get(&format!("/v1/transactions?{query}")).await.unwrap();
        let document = refused(&answer, 422, "invalid");
        assert!(!document.to_string().contains("unmistakable"), "{document}");
    }
    let listed = done(&bank.get("/v1/transactions?payer=acct-1&limit=100").await.unwrap());
    assert_eq!((listed["items"][0]["id"].as_str(), &listed["next"]), (Some(&*own), &json!(null)));
}

/// Pruning takes rows between the moment in which a page is found and that in which its items are read.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_while_a_page_is_read_is_not_on_it() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    for _ in 0..100 {
        holder.asked(&bank).await;
    }
    let database = rusqlite::Connection::open(daemon.database()).unwrap();
    database.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    let going = tokio::task::spawn_blocking(move || {
        let last = "DELETE FROM payment WHERE id = (SELECT id FROM payment ORDER BY created_unix_ms DESC, id DESC LIMIT 1)";
        while database.execute(last, []).unwrap() == 1 {}
    });
    while !page(&bank, "?limit=100").await.0.is_empty() {}
    going.await.unwrap();
}
