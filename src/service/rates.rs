//! How often each client may do what costs the appliance something and is charged to nobody.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Mutex;

use crate::domain::caller::ClientName;
use crate::domain::rate::{Rate, Spent};
use crate::domain::time::Now;

use super::Refused;

/// How many clients are counted at once. Those of one configuration are fewer; reloads may bring others.
const CLIENTS_MAX: usize = 4_096;

/// One rate, counted for each client by itself. In memory: a restart begins anew.
pub(super) struct Rates {
    rate: Option<Rate>,
    spent: Mutex<HashMap<ClientName, Spent>>,
}

impl Rates {
    /// So many a minute; 0: as many as it likes.
    pub fn new(per_minute: u32) -> Self {
        Self { rate: NonZeroU32::new(per_minute).map(Rate::per_minute), spent: Mutex::default() }
    }

    /// Counts one more of this client's.
    ///
    /// # Errors
    /// [`Refused::RateLimited`]; then it is not counted.
    pub fn take(&self, client: &ClientName, now: &Now) -> Result<(), Refused> {
        let Some(rate) = self.rate else { return Ok(()) };
        let mut all = self.spent.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if all.len() >= CLIENTS_MAX && !all.contains_key(client) {
            all.retain(|_, spent| !spent.is_past(now.boot_ms));
            if all.len() >= CLIENTS_MAX {
                return Err(Refused::RateLimited { retry_after_s: 60 });
            }
        }
        let spent = all.get(client).copied().unwrap_or_default();
        match rate.take(spent, now.boot_ms) {
            Ok(spent) => {
                all.insert(client.clone(), spent);
                Ok(())
            }
            Err(wait_ms) => Err(Refused::RateLimited { retry_after_s: wait_ms.div_ceil(1_000) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::{BootId, RunId};

    fn at(boot_ms: u64) -> Now {
        Now {
            unix_ms: 0,
            boot_ms,
            boot_id: BootId([1; 16]),
            run: RunId([0; 16]),
            trusted: true,
            floor: Default::default(),
        }
    }

    fn client(number: usize) -> ClientName {
        ClientName::try_from(format!("client-{number}")).unwrap()
    }

    #[test]
    fn each_client_has_its_own() {
        let rates = Rates::new(2);
        for _ in 0..2 {
            assert_eq!(rates.take(&client(1), &at(7)), Ok(()));
        }
        assert_eq!(rates.take(&client(1), &at(7)), Err(Refused::RateLimited { retry_after_s: 30 }));
        assert_eq!(rates.take(&client(2), &at(7)), Ok(()));
        assert_eq!(rates.take(&client(1), &at(30_007)), Ok(()));
    }

    #[test]
    fn none_is_no_limit() {
        let rates = Rates::new(0);
        assert!((0..10_000).all(|_| rates.take(&client(1), &at(7)).is_ok()));
        assert!(rates.spent.lock().unwrap().is_empty());
    }

    #[test]
    fn as_many_are_counted_as_there_is_room_for() {
        let rates = Rates::new(1);
        for number in 0..CLIENTS_MAX {
            assert_eq!(rates.take(&client(number), &at(7)), Ok(()));
        }
        let another = client(CLIENTS_MAX);
        assert_eq!(rates.take(&another, &at(60_006)), Err(Refused::RateLimited { retry_after_s: 60 }));
        assert_eq!(rates.take(&another, &at(60_007)), Ok(()));
        assert_eq!(rates.spent.lock().unwrap().len(), 1);
    }
}
