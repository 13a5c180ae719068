//! Whose the open connections are: no tenant and no client has all the room, and those who are no client have next to none.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::metrics::Whose;
use crate::tls::Client;

/// How many connections there may be whose certificate belongs to no client. Their requests are answered 401.
const NOBODYS_MAX: usize = 16;

/// The open connections, by tenant and by client.
pub struct Shares {
    tenant_max: usize,
    client_max: usize,
    open: Mutex<HashMap<(Whose, Box<str>), usize>>,
}

/// One of them, until it is dropped.
pub struct Share<'a> {
    shares: &'a Shares,
    of: Vec<(Whose, Box<str>)>,
}

impl Shares {
    /// So many for a tenant, and so many for each of its clients.
    pub fn new(tenant_max: usize, client_max: usize) -> Self {
        Self { tenant_max, client_max, open: Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<(Whose, Box<str>), usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more of this client's, or of nobody's; the error says whose there are too many of.
    pub fn take(&self, client: Option<&Client>) -> Result<Share<'_>, Whose> {
        let wanted = match client {
            Some(client) => vec![
                (Whose::Tenant, client.tenant_name().into(), self.tenant_max),
                (Whose::Client, client.name.as_str().into(), self.client_max),
            ],
            None => vec![(Whose::Nobody, "".into(), self.tenant_max.min(NOBODYS_MAX))],
        };
        let mut open = self.open();
        let count =
            |open: &HashMap<_, _>, whose: &(Whose, Box<str>)| open.get(whose).copied().unwrap_or_default();
        let mut of = Vec::with_capacity(wanted.len());
        for (whose, name, max) in wanted {
            let whose = (whose, name);
            if count(&open, &whose) >= max {
                return Err(whose.0);
            }
            of.push(whose);
        }
        for whose in &of {
            let one_more = count(&open, whose).saturating_add(1);
            open.insert(whose.clone(), one_more);
        }
        Ok(Share { shares: self, of })
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut open = self.shares.open();
        for whose in &self.of {
            if let Some(count) = open.get_mut(whose) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    open.remove(whose);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TenantScope;

    fn client(name: &str, tenant: &str) -> Client {
        let scope = TenantScope::One(tenant.to_owned().try_into().unwrap());
        Client { name: name.to_owned().try_into().unwrap(), scope, permissions: vec![] }
    }

    #[test]
    fn each_tenant_and_each_client_has_its_share_and_nobody_a_small_one() {
        let shares = Shares::new(NOBODYS_MAX + 2, NOBODYS_MAX);
        let (a1, a2, b) = (client("a1", "a"), client("a2", "a"), client("b", "b"));
        let fill = |client| std::iter::from_fn(|| shares.take(client).ok()).collect::<Vec<_>>();
        let (first, nobodys) = (fill(Some(&a1)), fill(None));
        assert_eq!((first.len(), nobodys.len()), (NOBODYS_MAX, NOBODYS_MAX));
        assert_eq!(shares.take(Some(&a1)).err(), Some(Whose::Client));
        assert_eq!(shares.take(None).err(), Some(Whose::Nobody));
        let mut second = fill(Some(&a2));
        assert_eq!(second.len(), 2);
        assert_eq!(shares.take(Some(&a2)).err(), Some(Whose::Tenant));
        let other = shares.take(Some(&b)).unwrap();
        second.pop();
        // Nothing was taken of the tenant's by what its client was refused.
        assert_eq!(shares.take(Some(&a1)).err(), Some(Whose::Client));
        second.push(shares.take(Some(&a2)).unwrap());
        assert!(shares.take(Some(&a2)).is_err());
        drop((first, second, nobodys, other));
        assert!(shares.open().is_empty(), "nothing is left of who has gone");
    }
}
