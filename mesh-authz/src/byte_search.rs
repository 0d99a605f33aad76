//! Looking for bytes in short texts quickly: every request's path is looked through.

const WIDTH: usize = 16;

/// Some bytes.
pub(crate) struct ByteSet([bool; 256]);

impl ByteSet {
    /// From the first to the last byte of each range.
    #[expect(
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::indexing_slicing,
        reason = "worked out by the compiler, which would tell; it has no iterators there"
    )]
    pub(crate) const fn of(ranges: &[(u8, u8)]) -> Self {
        let mut set = [false; 256];
        let (mut at, mut byte) = (0, 0_u8);
        while at < ranges.len() {
            let (first, last) = ranges[at];
            if byte >= first && byte <= last {
                set[byte as usize] = true;
            }
            if byte == u8::MAX {
                at += 1;
            }
            byte = byte.wrapping_add(1);
        }
        Self(set)
    }

    pub(crate) fn has(&self, byte: u8) -> bool {
        self.0.get(usize::from(byte)).copied().unwrap_or_default()
    }

    /// Whether any byte of a text is one of these. There is no branch for each.
    pub(crate) fn any_of(&self, text: &[u8]) -> bool {
        text.iter().fold(false, |found, byte| found | self.has(*byte))
    }
}

/// Whether a byte of a text stands right before another for which this holds. Two letters are no
/// such pair.
pub(crate) fn any_pair(text: &[u8], is_pair: impl Fn(u8, u8) -> bool) -> bool {
    let has_pair = |(firsts, seconds): (&[u8; WIDTH], &[u8; WIDTH])| {
        let pairs = firsts.iter().zip(seconds);
        pairs.fold(false, |found, (first, second)| found | is_pair(*first, *second))
    };
    let seconds = text.get(1..).unwrap_or_default();
    let firsts = text.get(..seconds.len()).unwrap_or_default();
    match firsts.last_chunk().zip(seconds.last_chunk()) {
        Some(last) => {
            let (firsts, seconds) = (firsts.as_chunks().0, seconds.as_chunks().0);
            firsts.iter().zip(seconds).any(has_pair) || has_pair(last)
        }
        None => has_pair((&padded(firsts), &padded(seconds))),
    }
}

fn padded(text: &[u8]) -> [u8; WIDTH] {
    let mut chunk = [b'a'; WIDTH];
    if let Some(start) = chunk.get_mut(..text.len()) {
        start.copy_from_slice(text);
    }
    chunk
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_its_ranges_have() {
        let set = ByteSet::of(&[(0, b' '), (b'a', b'c'), (0x7f, u8::MAX)]);
        for byte in 0..=u8::MAX {
            let want = byte <= b' ' || (b'a'..=b'c').contains(&byte) || byte >= 0x7f;
            assert_eq!(set.has(byte), want, "{byte}");
        }
    }

    /// At every place of texts of every length around the chunk's, and nowhere else.
    #[test]
    fn one_byte_or_pair_is_found_wherever_it_stands() {
        let percent = ByteSet::of(&[(b'%', b'%')]);
        for length in 0..50 {
            let plain = vec![b'b'; length];
            let is_pair = |first, second| first == b'/' && second == b'.';
            assert!(!percent.any_of(&plain), "{length}");
            assert!(!any_pair(&plain, is_pair), "{length}");
            for at in 0..length {
                let mut text = plain.clone();
                text[at] = b'%';
                assert!(percent.any_of(&text), "{at} of {length}");
                text[at] = b'/';
                assert!(!any_pair(&text, is_pair), "{at} of {length}");
                if at + 1 < length {
                    text[at + 1] = b'.';
                    assert!(any_pair(&text, is_pair), "{at} of {length}");
                }
            }
        }
    }
}
