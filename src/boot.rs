//! Which boot of the machine this is.

use crate::domain::time::BootId;

/// What a service manager says of it where `/proc` does not show it, as under systemd's `ProcSubset=pid`: 32 digits, `%b` in
/// a unit.
pub const VARIABLE: &str = "HSM_AUTHD_BOOT_ID";

/// The kernel's boot id; `None`: neither the kernel nor the service manager tells it.
pub fn id() -> Option<BootId> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    told(kernel.as_deref(), std::env::var(VARIABLE).ok().as_deref())
}

/// A sandbox may put something empty in the kernel's place.
fn told(kernel: Option<&str>, manager: Option<&str>) -> Option<BootId> {
    kernel.and_then(BootId::parse).or_else(|| manager.and_then(BootId::parse))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_believed_first_and_nothing_that_is_no_boot_id() {
        let one = "11111111-1111-1111-1111-111111111111\n";
        let two = "22222222222222222222222222222222";
        assert_eq!(told(Some(one), Some(two)), Some(BootId([0x11; 16])));
        assert_eq!(told(Some(""), Some(two)), Some(BootId([0x22; 16])));
        assert_eq!(told(None, Some(two)), Some(BootId([0x22; 16])));
        for none in
            ["", "%b", "2222", "zz222222222222222222222222222222", "222222222222222222222222222222222222"]
        {
            assert_eq!(told(None, Some(none)), None, "{none}");
        }
        assert_eq!(told(None, None), None);
    }
}
