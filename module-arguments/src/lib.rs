//! The text that some PKCS#11 modules want at `C_Initialize` (NSS: where its database is), in a crate of its own: the
//! binding takes it as a raw pointer, and hsm-authd itself forbids unsafe code.

use std::ffi::CString;
use std::ptr::NonNull;

use cryptoki::context::{CInitializeArgs, CInitializeFlags};

/// Arguments for `C_Initialize` with this text in `pReserved`, as C has it: its bytes, and one of zero after them. The
/// text stays in memory as long as the process. It is for modules alone whose manual says that they take such a text:
/// another may take the pointer for something else.
pub fn with_text(flags: CInitializeFlags, text: CString) -> CInitializeArgs {
    let text = NonNull::from(Box::leak(text.into_boxed_c_str())).cast();
    // SAFETY: the pointer is that of a C string which is never freed, in memory that nobody else has.
    #[allow(unsafe_code, reason = "the binding has no other way")]
    unsafe {
        CInitializeArgs::new_with_reserved(flags, text)
    }
}
