//! A client as an option names it.

use serde::Deserialize;
use serde::de::value::{Error, StrDeserializer};

use crate::config::{ClientConfig, TenantScope};
use crate::domain::caller::{ClientName, Permission, Tenant};

/// What a client may do as usual.
const USUAL: [Permission; 4] =
    [Permission::Enroll, Permission::Verify, Permission::Transact, Permission::Admin];

/// A client to be configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewClient {
    pub name: ClientName,
    pub san: String,
    pub tenant: TenantScope,
    /// As the configuration spells them.
    pub permissions: Vec<Permission>,
}

impl NewClient {
    /// `NAME[,san=URI][,tenant=TENANT][,permissions=A+B]`. Of `tenant=*` the usual permission is audit, the only one that it
    /// may have.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or_default().to_owned();
        let name = ClientName::try_from(name).map_err(|e| e.to_string())?;
        let (mut san, mut tenant, mut permissions) = (None, None, None);
        for part in parts {
            let is_new = match part.split_once('=') {
                Some(("san", uri)) if !uri.is_empty() => san.replace(uri.to_owned()).is_none(),
                Some(("tenant", name)) => {
                    let parsed = TenantScope::try_from(name.to_owned()).map_err(|e| e.to_string())?;
                    tenant.replace(parsed).is_none()
                }
                Some(("permissions", names)) => {
                    let parsed = names.split('+').map(permission).collect::<Result<Vec<_>, _>>()?;
                    permissions.replace(parsed).is_none()
                }
                _ => return Err(format!("{part:?} is not san=, tenant= or permissions=")),
            };
            if !is_new {
                return Err(format!("{part:?} says again what was said"));
            }
        }
        let tenant = match tenant {
            Some(tenant) => tenant,
            None => TenantScope::One(Tenant::try_from(name.to_string()).map_err(|e| e.to_string())?),
        };
        let permissions = permissions.unwrap_or_else(|| match tenant {
            TenantScope::One(_) => USUAL.to_vec(),
            TenantScope::All => vec![Permission::Audit],
        });
        let san = san.unwrap_or_else(|| format!("urn:hsm-authd:client:{name}"));
        Ok(Self { name, san, tenant, permissions })
    }

    /// Whether a configured one is this.
    pub fn is(&self, configured: &ClientConfig) -> bool {
        let ClientConfig { name, san, tenant, permissions } = configured;
        let may = |one: &[Permission], other: &[Permission]| one.iter().all(|p| other.contains(p));
        (name, san, tenant) == (&self.name, &self.san, &self.tenant)
            && may(permissions, &self.permissions)
            && may(&self.permissions, permissions)
    }
}

fn permission(name: &str) -> Result<Permission, String> {
    Permission::deserialize(StrDeserializer::<Error>::new(name)).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_enough_and_each_part_can_be_said_once() {
        let usual = NewClient::parse("bank-a").unwrap();
        assert_eq!(usual.san, "urn:hsm-authd:client:bank-a");
        assert_eq!(usual.tenant.only().unwrap().as_str(), "bank-a");
        assert_eq!(usual.permissions, USUAL);
        let gateway =
            NewClient::parse("gateway,tenant=bank-a,san=https://gw.example/a=b,permissions=verify+deliver");
        let gateway = gateway.unwrap();
        assert_eq!((gateway.name.as_str(), gateway.san.as_str()), ("gateway", "https://gw.example/a=b"));
        assert_eq!(gateway.tenant.only().unwrap().as_str(), "bank-a");
        assert_eq!(gateway.permissions, [Permission::Verify, Permission::Deliver]);
        let auditor = NewClient::parse("auditor,tenant=*").unwrap();
        assert_eq!((auditor.tenant, auditor.permissions), (TenantScope::All, vec![Permission::Audit]));
        for wrong in [
            "",
            "Bank",
            "bank a",
            "a,san=",
            "a,tenant=B",
            "a,permissions=",
            "a,permissions=verify+root",
            "a,may=verify",
            "a,",
            "a,tenant=b,tenant=c",
        ] {
            assert!(NewClient::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
