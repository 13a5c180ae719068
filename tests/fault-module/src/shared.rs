//! The file that the processes share, in this one's memory.
#![allow(unsafe_code, reason = "a mapping is a pointer")]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::board::Board;

/// A [`Board`] that other processes see too.
pub struct Shared {
    board: *const Board,
}

// SAFETY: it is nothing but a pointer to atomics that stay where they are until it is dropped.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Makes the file, with nothing on it; it takes up next to no room.
    ///
    /// # Errors
    /// It is there already, or cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len(size_of::<Board>() as u64)?;
        Self::map(&file)
    }

    /// Opens the file.
    ///
    /// # Errors
    /// It is not there, or none that [`Shared::create`] of this build made.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        if file.metadata()?.len() != size_of::<Board>() as u64 {
            return Err(io::Error::other("it has another size"));
        }
        Self::map(&file)
    }

    fn map(file: &File) -> io::Result<Self> {
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: at an address that the kernel chooses, so nothing that is there is replaced. The file is as long as a
        // board, and nobody makes it shorter.
        let board = unsafe { mmap(ptr::null_mut(), size_of::<Board>(), access, flags, file, 0)? };
        Ok(Self { board: board.cast_const().cast() })
    }
}

impl Deref for Shared {
    type Target = Board;

    fn deref(&self) -> &Board {
        // SAFETY: mapped until the drop, on a page's border and as long as a board. That is made of atomics alone, of
        // which all bytes are valid, zeros to begin with, and others may change them at any time.
        unsafe { &*self.board }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and nobody borrows from what is being dropped. A failure leaves it.
        let _ = unsafe { munmap(self.board.cast_mut().cast(), size_of::<Board>()) };
    }
}
