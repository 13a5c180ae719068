//! The functions that are called from outside, each of them forwarding to the real module's.
#![allow(unsafe_code, reason = "this is where C calls, and is called")]
#![allow(non_snake_case, reason = "the standard's names")]

use std::ffi::{OsStr, c_void};
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

use cryptoki_sys::*;
use libloading::os::unix::{Library, Symbol};

use crate::functions::{Function, for_each_function};
use crate::interception::{Call, Interception, Token};
use crate::outputs::{Outputs, Written};
use crate::shared::Shared;
use crate::{BOARD, TARGET};

/// The real module, and what stands before it.
struct Loaded {
    real: CK_FUNCTION_LIST,
    /// That of 3.0, if it has one.
    newer: Option<CK_FUNCTION_LIST_3_0>,
    interception: Interception,
    /// Never unloaded: `real` points into it.
    _library: Library,
}

impl Loaded {
    fn get() -> Option<&'static Self> {
        static LOADED: OnceLock<Option<Loaded>> = OnceLock::new();
        LOADED
            .get_or_init(|| Self::load().map_err(|reason| eprintln!("fault module: {reason}")).ok())
            .as_ref()
    }

    fn load() -> Result<Self, String> {
        let variable = |name| std::env::var_os(name).ok_or_else(|| format!("{name} is not set"));
        let (target, board) = (variable(TARGET)?, variable(BOARD)?);
        let board = Shared::open(Path::new(&board)).map_err(|error| format!("{board:?}: {error}"))?;
        let (library, real) = open(&target)?;
        let newer = newer(&library);
        Ok(Self { real, newer, interception: Interception::new(board), _library: library })
    }
}

fn open(path: &OsStr) -> Result<(Library, CK_FUNCTION_LIST), String> {
    let failed = |error| format!("{path:?}: {error}");
    // SAFETY: a PKCS#11 module is made to be loaded at any time; whoever runs the tests says which.
    let library = unsafe { Library::new(path) }.map_err(failed)?;
    type GetList = unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV;
    // SAFETY: that is its signature in every version of the standard.
    let get_list: Symbol<GetList> = unsafe { library.get(b"C_GetFunctionList\0") }.map_err(failed)?;
    let mut list = ptr::null_mut();
    // SAFETY: it may be called before `C_Initialize`, with a place for a pointer.
    let code = unsafe { get_list(&raw mut list) };
    if code != CKR_OK || list.is_null() {
        return Err(format!("{path:?}: C_GetFunctionList: {code:#x}"));
    }
    // SAFETY: it says that it has put a list there, which stays as long as the library.
    Ok((library, unsafe { *list }))
}

fn newer(library: &Library) -> Option<CK_FUNCTION_LIST_3_0> {
    type GetInterface =
        unsafe extern "C" fn(*mut CK_UTF8CHAR, *mut CK_VERSION, *mut *mut CK_INTERFACE, CK_FLAGS) -> CK_RV;
    // SAFETY: that is its signature in every version of the standard that has it.
    let get: Symbol<GetInterface> = unsafe { library.get(b"C_GetInterface\0") }.ok()?;
    let mut interface = ptr::null_mut();
    // SAFETY: it may be called before `C_Initialize`, with a place for a pointer.
    let code = unsafe { get(ptr::null_mut(), ptr::null_mut(), &raw mut interface, 0) };
    if code != CKR_OK || interface.is_null() {
        return None;
    }
    // SAFETY: it says that it has put an interface there, which stays as long as the library. Each list begins with its
    // version, and from 3.0 on with all that 3.0 has.
    unsafe {
        let list = (*interface).pFunctionList;
        let version = *list.cast::<CK_VERSION>();
        (version.major >= 3).then(|| {
            let mut newer = *list.cast::<CK_FUNCTION_LIST_3_0>();
            newer.version = CK_VERSION { major: 3, minor: 0 };
            newer
        })
    }
}

impl Token for CK_FUNCTION_LIST {
    fn log_out(&self, session: CK_SESSION_HANDLE) {
        if let Some(log_out) = self.C_Logout {
            // SAFETY: takes any number; one that is no session's is an error.
            unsafe { log_out(session) };
        }
    }

    fn close_sessions(&self, slot: CK_SLOT_ID) {
        if let Some(close_all) = self.C_CloseAllSessions {
            // SAFETY: takes any number; one that is no slot's is an error.
            unsafe { close_all(slot) };
        }
    }
}

/// What the table says of a function's output, in terms of its arguments.
macro_rules! outputs {
    (none()) => {
        Outputs::None
    };
    (fixed($thing:ident)) => {
        Outputs::Fixed($thing.cast(), pointee_bytes($thing))
    };
    (pair($first:ident, $second:ident)) => {
        Outputs::Pair([$first.cast(), $second.cast()], pointee_bytes($first))
    };
    (bytes($data:ident, $length:ident)) => {
        Outputs::Counted($data, 1, $length)
    };
    (list($things:ident, $count:ident)) => {
        Outputs::Counted($things.cast(), pointee_bytes($things), $count)
    };
    (filled($data:ident, $length:ident)) => {
        Outputs::Filled($data, $length)
    };
    (attributes($template:ident, $count:ident)) => {
        Outputs::Attributes($template, $count)
    };
}

fn pointee_bytes<T>(_: *mut T) -> usize {
    size_of::<T>()
}

/// The call that is made if no fault comes between.
macro_rules! forwarding {
    (itself($list:ident) $name:ident($($argument:ident),*) of $real:expr) => {{
        if !$list.is_null() {
            // SAFETY: the caller's place for a pointer. The list is only read.
            unsafe { *$list = (&raw const LIST).cast_mut() };
        }
        CKR_OK
    }};
    ($place:ident($($on:ident)?) $name:ident($($argument:ident),*) of $real:expr) => {
        match $real.$name {
            // SAFETY: what the caller has given, to a function of the same signature.
            Some(function) => unsafe { function($($argument),*) },
            None => CKR_FUNCTION_NOT_SUPPORTED,
        }
    };
}

/// The slot or session that a function is called on.
macro_rules! on {
    (slot($slot:ident)) => {
        $slot
    };
    (session($session:ident)) => {
        $session
    };
    (object($session:ident)) => {
        $session
    };
    ($place:ident($($on:ident)?)) => {
        0
    };
}

macro_rules! define_all {
    ($($place:ident($($on:ident)?) $name:ident($($argument:ident: $type:ty),*) -> $output:ident($($out:ident),*);)*) => {
        $(
            unsafe extern "C" fn $name($($argument: $type),*) -> CK_RV {
                crate::hostile::attack(stringify!($name));
                let Some(loaded) = Loaded::get() else { return CKR_GENERAL_ERROR };
                // SAFETY: the caller's pointers, which stay until this returns.
                let written = unsafe { Written::new(outputs!($output($($out),*))) };
                let forward = || forwarding!($place($($on)?) $name($($argument),*) of loaded.real);
                let call = Call { function: Function::$name, on: on!($place($($on)?)), written, forward: &forward };
                loaded.interception.intercept(&loaded.real, call)
            }
        )*

        /// What callers get. It has no field that the table has not, and none that is left out.
        static LIST: CK_FUNCTION_LIST = CK_FUNCTION_LIST {
            version: CK_VERSION { major: 2, minor: 40 },
            $($name: Some($name)),*
        };
    };
}
for_each_function!(define_all);

/// What callers get of a real module that has 3.0: its list, with ours in place of those that 2.40 has.
fn interface() -> Option<&'static SharedInterface> {
    static INTERFACE: OnceLock<Option<SharedInterface>> = OnceLock::new();
    let made = INTERFACE.get_or_init(|| {
        let mut list = Loaded::get()?.newer?;
        // SAFETY: the list of 3.0 begins as that of 2.40 does, behind the version; both are nothing but pointers.
        unsafe {
            let own = (&raw const LIST).cast::<u8>().add(FUNCTIONS_AT);
            let place = (&raw mut list).cast::<u8>().add(FUNCTIONS_AT);
            ptr::copy_nonoverlapping(own, place, size_of::<CK_FUNCTION_LIST>() - FUNCTIONS_AT);
        }
        let list = Box::leak(Box::new(list));
        let name = c"PKCS 11".as_ptr().cast_mut().cast();
        let interface =
            CK_INTERFACE { pInterfaceName: name, pFunctionList: (&raw mut *list).cast(), flags: 0 };
        Some(SharedInterface(Box::leak(Box::new(interface))))
    });
    made.as_ref()
}

/// Where the first function is.
const FUNCTIONS_AT: usize = std::mem::offset_of!(CK_FUNCTION_LIST, C_Initialize);

/// An interface that nobody changes any more.
struct SharedInterface(*mut CK_INTERFACE);

// SAFETY: it is only read from here on.
unsafe impl Send for SharedInterface {}
// SAFETY: the same.
unsafe impl Sync for SharedInterface {}

/// The way in.
mod exported {
    use super::{CK_FLAGS, CK_FUNCTION_LIST, CK_INTERFACE, CK_RV, CK_UTF8CHAR, CK_VERSION, CKR_OK};

    /// # Safety
    /// As the standard says: `list` is null, or a place for a pointer.
    // SAFETY: the one name that is exported is that of the standard, with its signature.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
        // SAFETY: the same function.
        unsafe { super::C_GetFunctionList(list) }
    }

    /// The default interface, whatever is asked for; of a real module that has none, a null one.
    ///
    /// # Safety
    /// As the standard says: `interface` is null, or a place for a pointer.
    // SAFETY: the name is that of the standard, with its signature.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn C_GetInterface(
        _name: *mut CK_UTF8CHAR,
        _version: *mut CK_VERSION,
        interface: *mut *mut CK_INTERFACE,
        _flags: CK_FLAGS,
    ) -> CK_RV {
        if !interface.is_null() {
            let own = super::interface().map_or(std::ptr::null_mut(), |interface| interface.0);
            // SAFETY: the caller's place for a pointer.
            unsafe { *interface = own };
        }
        CKR_OK
    }
}
