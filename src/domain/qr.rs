//! What a QR code can hold: whatever is to be shown as one has to fit.

/// The most bytes a QR code holds: version 40, error correction level L, byte mode (ISO/IEC 18004, table 7).
pub const QR_BYTES_MAX: usize = 2_953;
