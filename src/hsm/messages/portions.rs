//! Many rows, in messages that are not too long.

use crate::domain::row::SealedBytes;

/// How many bytes of rows, and how many rows, a message that only checks them is to hold: others wait for it.
const PORTION_BYTES_MAX: usize = 48 * 1024;
const PORTION_ROWS_MAX: usize = 75;

/// Rows to be checked, in portions for one message each, in their order; of no row there is one empty portion.
pub fn portions(rows: Vec<SealedBytes>) -> Vec<Vec<SealedBytes>> {
    let (mut portions, mut portion, mut portion_bytes) = (Vec::new(), Vec::new(), 0_usize);
    for row in rows {
        let bytes = row.message_bytes();
        let with_it = portion_bytes.saturating_add(bytes);
        if !portion.is_empty() && (with_it > PORTION_BYTES_MAX || portion.len() == PORTION_ROWS_MAX) {
            portions.push(std::mem::take(&mut portion));
            portion_bytes = 0;
        }
        portion_bytes = portion_bytes.saturating_add(bytes);
        portion.push(row);
    }
    portions.push(portion);
    portions
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::newest;
    use super::super::{Call, Outcome, Request, SealRows, encode};
    use super::*;
    use crate::domain::row::Seal;

    /// A row of so many bytes.
    fn row(bytes: usize) -> SealedBytes {
        let bytes = postcard::from_bytes(&postcard::to_stdvec(&vec![7u8; bytes]).unwrap()).unwrap();
        SealedBytes { bytes, seal: Seal { key_version: u16::MAX, mac: [0xff; 32] } }
    }

    #[test]
    fn of_no_row_there_is_one_portion() {
        assert_eq!(portions(Vec::new()).iter().map(Vec::len).collect::<Vec<_>>(), [0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn each_portion_fits_a_frame(
            lengths in prop::collection::vec(prop_oneof![0..300usize, 0..9_000usize], 0..200),
        ) {
            let portions = portions(lengths.iter().copied().map(row).collect());
            let told: Vec<_> = portions.iter().flatten().map(|row| row.bytes.as_bytes().len()).collect();
            prop_assert_eq!(&told, &lengths);
            for standing in portions {
                prop_assert!(standing.len() <= PORTION_ROWS_MAX);
                prop_assert!(!standing.is_empty() || lengths.is_empty());
                let request = Request::Seal(SealRows { standing, outcome: Outcome::default() });
                let frame = encode(&Call { repeated: false, id: u64::MAX, newest: newest(), request });
                prop_assert!(frame.is_ok());
            }
        }

    }
}
