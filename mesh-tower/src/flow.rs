//! How much goes through a body: bytes, and for gRPC messages.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts gRPC's length-prefixed messages in a stream of bytes, however it is cut.
#[derive(Clone, Debug, Default)]
pub(crate) struct Messages {
    /// A flag byte and a length in four bytes, as far as they have come.
    prefix: Vec<u8>,
    /// What is missing of the message.
    rest: usize,
    count: u64,
}

/// Bytes of a flag and a length.
const PREFIX: usize = 5;

impl Messages {
    /// Messages whose prefix has been seen whole.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn feed(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.rest > 0 {
                let skipped = self.rest.min(data.len());
                self.rest = self.rest.saturating_sub(skipped);
                data = data.get(skipped..).unwrap_or_default();
                continue;
            }
            let missing = PREFIX.saturating_sub(self.prefix.len()).min(data.len());
            let (taken, after) = data.split_at_checked(missing).unwrap_or((data, &[]));
            self.prefix.extend_from_slice(taken);
            data = after;
            if let [_flag, a, b, c, d] = *self.prefix.as_slice() {
                self.rest = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                self.prefix.clear();
                self.count = self.count.saturating_add(1);
            }
        }
    }
}

/// What a request's body has brought so far; its reader counts, its record reads.
#[derive(Debug, Default)]
pub(crate) struct Received {
    bytes: AtomicU64,
    messages: AtomicU64,
}

impl Received {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, data: &[u8]) {
        self.add_length(data.len());
    }

    pub(crate) fn add_length(&self, length: usize) {
        self.bytes.fetch_add(u64::try_from(length).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn set_messages(&self, count: u64) {
        self.messages.store(count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The count is the same wherever the stream is cut.
    #[test]
    fn messages_are_counted_however_the_stream_is_cut() {
        let stream = b"\0\0\0\0\x03abc\x01\0\0\0\0\0\0\0\0\x01x";
        for cut in 1..=stream.len() {
            let mut messages = Messages::default();
            stream.chunks(cut).for_each(|part| messages.feed(part));
            assert_eq!(messages.count(), 3, "in parts of {cut}");
        }
    }

    #[test]
    fn a_message_that_never_ends_is_one() {
        let mut messages = Messages::default();
        messages.feed(b"\0\xff\xff\xff\xffabc");
        messages.feed(&[0; 100]);
        assert_eq!(messages.count(), 1);
    }
}
