//! What a module says of an object, for an operator.

use cryptoki::object::{Attribute, AttributeType};

use super::session::{Object, Session};
use super::{Pkcs11Error, constant};

/// What is read: what the object is, who may have it, and what it may be used for.
const READ: [AttributeType; 19] = [
    AttributeType::Class,
    AttributeType::KeyType,
    AttributeType::Token,
    AttributeType::Private,
    AttributeType::Modifiable,
    AttributeType::Sensitive,
    AttributeType::AlwaysSensitive,
    AttributeType::Extractable,
    AttributeType::NeverExtractable,
    AttributeType::Local,
    AttributeType::Encrypt,
    AttributeType::Decrypt,
    AttributeType::Sign,
    AttributeType::Verify,
    AttributeType::Wrap,
    AttributeType::Unwrap,
    AttributeType::Derive,
    AttributeType::ModulusBits,
    AttributeType::AllowedMechanisms,
];

impl Session {
    /// Attributes with their values, as the module reports them, in words of the standard; those that the object has not
    /// are left out.
    ///
    /// # Errors
    /// The object cannot be read.
    pub fn described(&self, object: Object) -> Result<Vec<(String, String)>, Pkcs11Error> {
        let mut found = Vec::new();
        // One by one: a module may refuse a whole list for one that the object has not.
        for attribute in READ {
            for attribute in self.attributes(object, &[attribute]).unwrap_or_default() {
                let name = constant("CKA", &format!("{:?}", attribute.attribute_type()));
                found.extend(value(&attribute).map(|value| (name, value)));
            }
        }
        match found.is_empty() {
            // Nothing at all is an object that is gone.
            true => Err(self
                .attributes(object, &[AttributeType::Class])
                .err()
                .unwrap_or_else(|| Pkcs11Error(super::Cause::Attribute("CKA_CLASS".to_owned())))),
            false => Ok(found),
        }
    }
}

fn value(attribute: &Attribute) -> Option<String> {
    use Attribute::{
        AllowedMechanisms, AlwaysSensitive, Class, Decrypt, Derive, Encrypt, Extractable, KeyType, Local,
        Modifiable, ModulusBits, NeverExtractable, Private, Sensitive, Sign, Token, Unwrap, Verify, Wrap,
    };
    Some(match attribute {
        Class(class) => class.to_string(),
        KeyType(key_type) => key_type.to_string(),
        ModulusBits(bits) => bits.to_string(),
        AllowedMechanisms(allowed) if allowed.is_empty() => return None,
        AllowedMechanisms(allowed) => allowed.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        Token(is) | Private(is) | Modifiable(is) | Sensitive(is) | AlwaysSensitive(is) | Extractable(is)
        | NeverExtractable(is) | Local(is) | Encrypt(is) | Decrypt(is) | Sign(is) | Verify(is) | Wrap(is)
        | Unwrap(is) | Derive(is) => is.to_string(),
        _ => return None,
    })
}
