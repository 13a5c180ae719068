//! The one table of all functions: what each is called on, its arguments, and what it puts out.

use cryptoki_sys::CK_FUNCTION_LIST;

/// Calls the macro `$then` with a row for each function of `CK_FUNCTION_LIST`, in its order:
/// `place(argument) name(arguments) -> output(arguments);`
macro_rules! for_each_function {
    ($then:ident) => {
        $then! {
            library() C_Initialize(arguments: *mut c_void) -> none();
            library() C_Finalize(reserved: *mut c_void) -> none();
            library() C_GetInfo(info: *mut CK_INFO) -> fixed(info);
            itself(list) C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> none();
            library() C_GetSlotList(with_token: CK_BBOOL, slots: *mut CK_SLOT_ID, count: *mut CK_ULONG)
                -> list(slots, count);
            slot(slot) C_GetSlotInfo(slot: CK_SLOT_ID, info: *mut CK_SLOT_INFO) -> fixed(info);
            slot(slot) C_GetTokenInfo(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> fixed(info);
            slot(slot) C_GetMechanismList(
                slot: CK_SLOT_ID, mechanisms: *mut CK_MECHANISM_TYPE, count: *mut CK_ULONG
            ) -> list(mechanisms, count);
            slot(slot) C_GetMechanismInfo(
                slot: CK_SLOT_ID, mechanism: CK_MECHANISM_TYPE, info: *mut CK_MECHANISM_INFO
            ) -> fixed(info);
            slot(slot) C_InitToken(
                slot: CK_SLOT_ID, pin: *mut CK_UTF8CHAR, pin_length: CK_ULONG, label: *mut CK_UTF8CHAR
            ) -> none();
            session(session) C_InitPIN(
                session: CK_SESSION_HANDLE, pin: *mut CK_UTF8CHAR, pin_length: CK_ULONG
            ) -> none();
            session(session) C_SetPIN(
                session: CK_SESSION_HANDLE,
                old: *mut CK_UTF8CHAR,
                old_length: CK_ULONG,
                new: *mut CK_UTF8CHAR,
                new_length: CK_ULONG
            ) -> none();
            slot(slot) C_OpenSession(
                slot: CK_SLOT_ID,
                flags: CK_FLAGS,
                application: *mut c_void,
                notify: CK_NOTIFY,
                session: *mut CK_SESSION_HANDLE
            ) -> fixed(session);
            session(session) C_CloseSession(session: CK_SESSION_HANDLE) -> none();
            slot(slot) C_CloseAllSessions(slot: CK_SLOT_ID) -> none();
            session(session) C_GetSessionInfo(session: CK_SESSION_HANDLE, info: *mut CK_SESSION_INFO)
                -> fixed(info);
            session(session) C_GetOperationState(
                session: CK_SESSION_HANDLE, state: *mut CK_BYTE, length: *mut CK_ULONG
            ) -> bytes(state, length);
            object(session) C_SetOperationState(
                session: CK_SESSION_HANDLE,
                state: *mut CK_BYTE,
                length: CK_ULONG,
                encryption_key: CK_OBJECT_HANDLE,
                authentication_key: CK_OBJECT_HANDLE
            ) -> none();
            session(session) C_Login(
                session: CK_SESSION_HANDLE, user: CK_USER_TYPE, pin: *mut CK_UTF8CHAR, pin_length: CK_ULONG
            ) -> none();
            session(session) C_Logout(session: CK_SESSION_HANDLE) -> none();
            session(session) C_CreateObject(
                session: CK_SESSION_HANDLE,
                template: *mut CK_ATTRIBUTE,
                count: CK_ULONG,
                object: *mut CK_OBJECT_HANDLE
            ) -> fixed(object);
            object(session) C_CopyObject(
                session: CK_SESSION_HANDLE,
                object: CK_OBJECT_HANDLE,
                template: *mut CK_ATTRIBUTE,
                count: CK_ULONG,
                copy: *mut CK_OBJECT_HANDLE
            ) -> fixed(copy);
            object(session) C_DestroyObject(session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE) -> none();
            object(session) C_GetObjectSize(
                session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, size: *mut CK_ULONG
            ) -> fixed(size);
            object(session) C_GetAttributeValue(
                session: CK_SESSION_HANDLE,
                object: CK_OBJECT_HANDLE,
                template: *mut CK_ATTRIBUTE,
                count: CK_ULONG
            ) -> attributes(template, count);
            object(session) C_SetAttributeValue(
                session: CK_SESSION_HANDLE,
                object: CK_OBJECT_HANDLE,
                template: *mut CK_ATTRIBUTE,
                count: CK_ULONG
            ) -> none();
            session(session) C_FindObjectsInit(
                session: CK_SESSION_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG
            ) -> none();
            session(session) C_FindObjects(
                session: CK_SESSION_HANDLE,
                objects: *mut CK_OBJECT_HANDLE,
                objects_max: CK_ULONG,
                count: *mut CK_ULONG
            ) -> list(objects, count);
            session(session) C_FindObjectsFinal(session: CK_SESSION_HANDLE) -> none();
            object(session) C_EncryptInit(
                session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE
            ) -> none();
            session(session) C_Encrypt(
                session: CK_SESSION_HANDLE,
                data: *mut CK_BYTE,
                data_length: CK_ULONG,
                output: *mut CK_BYTE,
                length: *mut CK_ULONG
            ) -> bytes(output, length);
            session(session) C_EncryptUpdate(
                session: CK_SESSION_HANDLE,
                data: *mut CK_BYTE,
                data_length: CK_ULONG,
                output: *mut CK_BYTE,
                length: *mut CK_ULONG
            ) -> bytes(output, length);
            session(session) C_EncryptFinal(
                session: CK_SESSION_HANDLE, output: *mut CK_BYTE, length: *mut CK_ULONG
            ) -> bytes(output, length);
            object(session) C_DecryptInit(
                session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE
            ) -> none();
            session(session) C_Decrypt(
                session: CK_SESSION_HANDLE,
                data: *mut CK_BYTE,
                data_length: CK_ULONG,
                output: *mut CK_BYTE,
                length: *mut CK_ULONG
            ) -> bytes(output, length);
            session(session) C_DecryptUpdate(
                session: CK_SESSION_HANDLE,
                data: *mut CK_BYTE,
                data_length: CK_ULONG,
                output: *mut CK_BYTE,
                length: *mut CK_ULONG
            ) -> bytes(output, length);
            session(session) C_DecryptFinal(
                session: CK_SESSION_HANDLE, output: *mut CK_BYTE, length: *mut CK_ULONG
            ) -> bytes(output, length);
            session(session) C_DigestInit(session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM) -> none();
            session(session) C_Digest(
                session: CK_SESSION_HANDLE,
                data: *mut CK_BYTE,
                data_length: CK_ULONG,
                digest: *mut CK_BYTE,
                length: *mut CK_ULONG
            ) -> bytes(digest, length);
            session(session) C_DigestUpdate(
                session: CK_SESSION_HANDLE, data: *mut CK_BYTE, data_length: CK_ULONG
            ) -> none();
            object(session) C_DigestKey(session: CK_SESSION_HANDLE, key: CK_OBJECT_HANDLE) -> none();
            session(session) C_DigestFinal(
                session: CK_SESSION_HANDLE, digest: *mut CK_BYTE, length: *mut CK_ULONG
            ) -> bytes(digest, length);
            object(session) C_SignInit(
                session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE
            ) -> none();
            session(session) C_Sign(
                session: CK_SESSION_HANDLE,
                data: *mut CK_BYTE,
                data_length: CK_ULONG,
                signature: *mut CK_BYTE,
                length: *mut CK_ULONG
            ) -> bytes(signature, length);
            session(session) C_SignUpdate(
                session: CK_SESSION_HANDLE, data: *mut CK_BYTE, data_length: CK_ULONG
            ) -> none();
            session(session) C_SignFinal(
                session: CK_SESSION_HANDLE, signature: *mut CK_BYTE, length: *mut CK_ULONG
            ) -> bytes(signature, length);
            object(session) C_SignRecoverInit(
                session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE
            ) -> none();
            session(session) C_SignRecover(
                session: CK_SESSION_HANDLE,
                data: *mut CK_BYTE,
                data_length: CK_ULONG,
                signature: *mut CK_BYTE,
                length: *mut CK_ULONG
            ) -> bytes(signature, length);
            object(session) C_VerifyInit(
                session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE
            ) -> none();
            session(session) C_Verify(
                session: CK_SESSION_HANDLE,
                data: *mut CK_BYTE,
                data_length: CK_ULONG,
                signature: *mut CK_BYTE,
                length: CK_ULONG
            ) -> none();
            session(session) C_VerifyUpdate(
                session: CK_SESSION_HANDLE, data: *mut CK_BYTE, data_length: CK_ULONG
            ) -> none();
            session(session) C_VerifyFinal(
                session: CK_SESSION_HANDLE, signature: *mut CK_BYTE, length: CK_ULONG
            ) -> none();
            object(session) C_VerifyRecoverInit(
                session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE
            ) -> none();
            session(session) C_VerifyRecover(
                session: CK_SESSION_HANDLE,
                signature: *mut CK_BYTE,
                signature_length: CK_ULONG,
                data: *mut CK_BYTE,
                length: *mut CK_ULONG
            ) -> bytes(data, length);
            session(session) C_DigestEncryptUpdate(
                session: CK_SESSION_HANDLE,
                data: *mut CK_BYTE,
                data_length: CK_ULONG,
                output: *mut CK_BYTE,
                length: *mut CK_ULONG
            ) -> bytes(output, length);
            session(session) C_DecryptDigestUpdate(
                session: CK_SESSION_HANDLE,
                data: *mut CK_BYTE,
                data_length: CK_ULONG,
                output: *mut CK_BYTE,
                length: *mut CK_ULONG
            ) -> bytes(output, length);
            session(session) C_SignEncryptUpdate(
                session: CK_SESSION_HANDLE,
                data: *mut CK_BYTE,
                data_length: CK_ULONG,
                output: *mut CK_BYTE,
                length: *mut CK_ULONG
            ) -> bytes(output, length);
            session(session) C_DecryptVerifyUpdate(
                session: CK_SESSION_HANDLE,
                data: *mut CK_BYTE,
                data_length: CK_ULONG,
                output: *mut CK_BYTE,
                length: *mut CK_ULONG
            ) -> bytes(output, length);
            session(session) C_GenerateKey(
                session: CK_SESSION_HANDLE,
                mechanism: *mut CK_MECHANISM,
                template: *mut CK_ATTRIBUTE,
                count: CK_ULONG,
                key: *mut CK_OBJECT_HANDLE
            ) -> fixed(key);
            session(session) C_GenerateKeyPair(
                session: CK_SESSION_HANDLE,
                mechanism: *mut CK_MECHANISM,
                public_template: *mut CK_ATTRIBUTE,
                public_count: CK_ULONG,
                private_template: *mut CK_ATTRIBUTE,
                private_count: CK_ULONG,
                public_key: *mut CK_OBJECT_HANDLE,
                private_key: *mut CK_OBJECT_HANDLE
            ) -> pair(public_key, private_key);
            object(session) C_WrapKey(
                session: CK_SESSION_HANDLE,
                mechanism: *mut CK_MECHANISM,
                wrapping_key: CK_OBJECT_HANDLE,
                key: CK_OBJECT_HANDLE,
                wrapped: *mut CK_BYTE,
                length: *mut CK_ULONG
            ) -> bytes(wrapped, length);
            object(session) C_UnwrapKey(
                session: CK_SESSION_HANDLE,
                mechanism: *mut CK_MECHANISM,
                unwrapping_key: CK_OBJECT_HANDLE,
                wrapped: *mut CK_BYTE,
                wrapped_length: CK_ULONG,
                template: *mut CK_ATTRIBUTE,
                count: CK_ULONG,
                key: *mut CK_OBJECT_HANDLE
            ) -> fixed(key);
            object(session) C_DeriveKey(
                session: CK_SESSION_HANDLE,
                mechanism: *mut CK_MECHANISM,
                base_key: CK_OBJECT_HANDLE,
                template: *mut CK_ATTRIBUTE,
                count: CK_ULONG,
                key: *mut CK_OBJECT_HANDLE
            ) -> fixed(key);
            session(session) C_SeedRandom(session: CK_SESSION_HANDLE, seed: *mut CK_BYTE, length: CK_ULONG)
                -> none();
            session(session) C_GenerateRandom(session: CK_SESSION_HANDLE, random: *mut CK_BYTE, length: CK_ULONG)
                -> filled(random, length);
            session(session) C_GetFunctionStatus(session: CK_SESSION_HANDLE) -> none();
            session(session) C_CancelFunction(session: CK_SESSION_HANDLE) -> none();
            library() C_WaitForSlotEvent(flags: CK_FLAGS, slot: *mut CK_SLOT_ID, reserved: *mut c_void)
                -> fixed(slot);
        }
    };
}
pub(crate) use for_each_function;

/// What a function is called on.
#[allow(non_camel_case_types, reason = "as the table has them")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The library.
    library,
    /// The library, which answers itself: nothing is forwarded.
    itself,
    /// A slot.
    slot,
    /// A session.
    session,
    /// An object, in a session.
    object,
}

/// What a function puts out.
#[allow(non_camel_case_types, reason = "as the table has them")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// A return code.
    none,
    /// Bytes, and how many.
    bytes,
    /// One thing of a fixed size: a handle, a number, a structure.
    fixed,
    /// Two handles.
    pair,
    /// Several things of a fixed size, and how many.
    list,
    /// Values of attributes.
    attributes,
    /// As many bytes as were asked for.
    filled,
}

macro_rules! name_all {
    ($($place:ident($($on:ident)?) $name:ident($($argument:ident: $type:ty),*) -> $output:ident($($out:ident),*);)*) => {
        /// A function of PKCS#11 2.40, by its name there.
        #[allow(non_camel_case_types, missing_docs, reason = "the standard's names")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Function { $($name),* }

        impl Function {
            /// All of them, in the order of `CK_FUNCTION_LIST`.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// What it is called on.
            pub fn place(self) -> Place {
                match self { $(Self::$name => Place::$place),* }
            }

            /// Where it is in a `CK_FUNCTION_LIST`, in bytes.
            pub fn offset_bytes(self) -> usize {
                match self { $(Self::$name => std::mem::offset_of!(CK_FUNCTION_LIST, $name)),* }
            }

            /// What it puts out.
            pub fn output(self) -> Output {
                match self { $(Self::$name => Output::$output),* }
            }
        }
    };
}
for_each_function!(name_all);

impl Function {
    /// Its position among [`Function::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}
