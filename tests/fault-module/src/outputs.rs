//! What a call has put out, and how that is spoilt: the module's own memory, and the caller's.
#![allow(unsafe_code, reason = "what C has put out is behind pointers")]

use std::ptr::NonNull;
use std::slice;

use cryptoki_sys::{CK_ATTRIBUTE, CK_ULONG, CK_UNAVAILABLE_INFORMATION};

use crate::fault::Length;

/// Where a call puts out what. Pointers may be null: then the caller wants to know a length, or is wrong.
#[derive(Clone, Copy)]
pub(crate) enum Outputs {
    /// A return code alone.
    None,
    /// One thing of so many bytes.
    Fixed(*mut u8, usize),
    /// Two of them.
    Pair([*mut u8; 2], usize),
    /// As many of them, each of so many bytes, as the number at the end says.
    Counted(*mut u8, usize, *mut CK_ULONG),
    /// So many bytes, which were asked for.
    Filled(*mut u8, CK_ULONG),
    /// The values of so many attributes.
    Attributes(*mut CK_ATTRIBUTE, CK_ULONG),
}

/// What a call has put out.
///
/// # Safety
/// To be made only of pointers that a caller of PKCS#11 has given, while the call lasts: each is null, or points to what
/// the standard says.
pub(crate) struct Written(Outputs);

impl Written {
    /// # Safety
    /// See there.
    pub(crate) unsafe fn new(outputs: Outputs) -> Self {
        Self(outputs)
    }

    /// Whether the call asks for nothing but a length.
    pub(crate) fn is_query(&mut self) -> bool {
        match self.0 {
            Outputs::Counted(data, ..) => data.is_null(),
            Outputs::Attributes(..) => self.attributes().iter().all(|attribute| attribute.pValue.is_null()),
            _ => false,
        }
    }

    /// The handle that was put out, if it is one.
    pub(crate) fn handle(&mut self) -> Option<CK_ULONG> {
        match self.parts().as_slice() {
            [handle] => Some(CK_ULONG::from_ne_bytes((&**handle).try_into().ok()?)),
            _ => None,
        }
    }

    /// Whether there is anything to spoil.
    pub(crate) fn is_something(&mut self) -> bool {
        !self.is_query() && self.parts().iter().any(|part| !part.is_empty())
    }

    /// Turns a bit over.
    pub(crate) fn corrupt(&mut self, bit: u64) {
        let mut bytes: Vec<&mut u8> = self.parts().into_iter().flatten().collect();
        let bits = bytes.len() as u64 * 8;
        let Some(bit) = bit.checked_rem(bits) else { return };
        if let Some(byte) = bytes.get_mut((bit / 8) as usize) {
            **byte ^= 1 << (bit % 8);
        }
    }

    /// Cuts it, and says nothing of that. Of attributes, the first that has a value.
    pub(crate) fn shorten(&mut self, length: Length) {
        let cut = |from: CK_ULONG| match length {
            Length::LessByOne => from.saturating_sub(1),
            Length::To(to) => from.min(to.into()),
        };
        match self.0 {
            Outputs::Counted(_, _, count) => {
                if let Some(mut count) = NonNull::new(count) {
                    // SAFETY: points to a number of the caller's (see `Written`).
                    let count = unsafe { count.as_mut() };
                    *count = cut(*count);
                }
            }
            Outputs::Attributes(..) => {
                if let Some(first) = self.attributes().iter_mut().find(|one| has_value(one)) {
                    first.ulValueLen = cut(first.ulValueLen);
                }
            }
            Outputs::Filled(_, bytes) => {
                for part in self.parts() {
                    part.get_mut(cut(bytes) as usize..).unwrap_or_default().fill(0);
                }
            }
            Outputs::None | Outputs::Fixed(..) | Outputs::Pair(..) => {}
        }
    }

    /// Says another length than that of what is there, of each thing that was put out.
    pub(crate) fn claim(&mut self, length: u64) {
        match self.0 {
            Outputs::Counted(_, _, count) => {
                if let Some(mut count) = NonNull::new(count) {
                    // SAFETY: points to a number of the caller's (see `Written`).
                    unsafe { *count.as_mut() = length };
                }
            }
            Outputs::Attributes(..) => {
                let known = |one: &&mut CK_ATTRIBUTE| one.ulValueLen != CK_UNAVAILABLE_INFORMATION;
                self.attributes().iter_mut().filter(known).for_each(|one| one.ulValueLen = length);
            }
            Outputs::None | Outputs::Fixed(..) | Outputs::Pair(..) | Outputs::Filled(..) => {}
        }
    }

    fn attributes(&mut self) -> &mut [CK_ATTRIBUTE] {
        match self.0 {
            Outputs::Attributes(template, count) if !template.is_null() => {
                // SAFETY: points to so many attributes of the caller's (see `Written`).
                unsafe { slice::from_raw_parts_mut(template, count as usize) }
            }
            _ => &mut [],
        }
    }

    /// The bytes, where they are.
    fn parts(&mut self) -> Vec<&mut [u8]> {
        let part = |data: *mut u8, bytes: usize| match data.is_null() {
            true => &mut [][..],
            // SAFETY: points to so many bytes of the caller's, which the call has written (see `Written`).
            false => unsafe { slice::from_raw_parts_mut(data, bytes) },
        };
        match self.0 {
            Outputs::None => Vec::new(),
            Outputs::Fixed(data, bytes) => vec![part(data, bytes)],
            Outputs::Pair([first, second], bytes) => vec![part(first, bytes), part(second, bytes)],
            Outputs::Counted(data, item_bytes, count) => {
                // SAFETY: points to a number of the caller's (see `Written`).
                let count = NonNull::new(count).map_or(0, |count| unsafe { *count.as_ref() });
                vec![part(data, (count as usize).saturating_mul(item_bytes))]
            }
            Outputs::Filled(data, bytes) => vec![part(data, bytes as usize)],
            Outputs::Attributes(..) => {
                let with_value = self.attributes().iter().filter(|one| has_value(one));
                with_value.map(|one| part(one.pValue.cast(), one.ulValueLen as usize)).collect()
            }
        }
    }
}

fn has_value(attribute: &CK_ATTRIBUTE) -> bool {
    !attribute.pValue.is_null()
        && attribute.ulValueLen != 0
        && attribute.ulValueLen != CK_UNAVAILABLE_INFORMATION
}
