//! Whose the open connections are: no tenant has all the room, and those who are no client have next to none.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::metrics::Whose;

/// How many connections there may be whose certificate belongs to no client. Their requests are answered 401.
const NOBODYS_MAX: usize = 16;

/// The open connections, by tenant.
pub struct Shares {
    tenant_max: usize,
    /// `None`: they are no client's.
    open: Mutex<HashMap<Option<Box<str>>, usize>>,
}

/// One of them, until it is dropped.
pub struct Share<'a> {
    shares: &'a Shares,
    tenant: Option<Box<str>>,
}

impl Shares {
    /// So many for a tenant.
    pub fn new(tenant_max: usize) -> Self {
        Self { tenant_max, open: Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Option<Box<str>>, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more of this tenant's, or of nobody's; the error says whose there are too many of.
    pub fn take(&self, tenant: Option<&str>) -> Result<Share<'_>, Whose> {
        let (max, whose) = match tenant {
            Some(_) => (self.tenant_max, Whose::Tenant),
            None => (self.tenant_max.min(NOBODYS_MAX), Whose::Nobody),
        };
        let tenant: Option<Box<str>> = tenant.map(Into::into);
        let mut open = self.open();
        let count = open.entry(tenant.clone()).or_default();
        // Of an entry that was made just now there is room: the bounds are at least 1.
        if *count >= max {
            return Err(whose);
        }
        *count = count.saturating_add(1);
        Ok(Share { shares: self, tenant })
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut open = self.shares.open();
        if let Some(count) = open.get_mut(&self.tenant) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tenant_has_its_share_and_nobody_a_small_one() {
        let shares = Shares::new(NOBODYS_MAX + 1);
        let fill = |tenant| std::iter::from_fn(|| shares.take(tenant).ok()).collect::<Vec<_>>();
        let (mut a, nobodys) = (fill(Some("a")), fill(None));
        assert_eq!((a.len(), nobodys.len()), (NOBODYS_MAX + 1, NOBODYS_MAX));
        assert_eq!(shares.take(Some("a")).err(), Some(Whose::Tenant));
        assert_eq!(shares.take(None).err(), Some(Whose::Nobody));
        let b = shares.take(Some("b")).unwrap();
        a.pop();
        a.push(shares.take(Some("a")).unwrap());
        assert!(shares.take(Some("a")).is_err());
        drop((a, nobodys, b));
        assert!(shares.open().is_empty(), "nothing is left of who has gone");
    }
}
