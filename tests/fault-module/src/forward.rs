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
        Ok(Self { real, interception: Interception::new(board), _library: library })
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

/// The way in.
mod exported {
    use super::{CK_FUNCTION_LIST, CK_RV};

    /// # Safety
    /// As the standard says: `list` is null, or a place for a pointer.
    // SAFETY: the one name that is exported is that of the standard, with its signature.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
        // SAFETY: the same function.
        unsafe { super::C_GetFunctionList(list) }
    }
}
