//! Lets gRPC's C core in (Python, C++, Ruby, …): over a Unix socket it sends the socket's path,
//! percent-encoded, as `:authority`, which the crate h2 refuses as malformed, with the whole call.
//!
//! Nobody here looks at the authority, so each `%` of it becomes a `-` on the way in: nothing changes
//! its length, and what the client later refers to by an index is what was rewritten.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What an HTTP/2 client says first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Largest frame that is held until it is whole: what a server allows by default.
const MAX_FRAME: usize = 16_384;

/// Length, type, flags, stream (RFC 9113 section 4.1).
const FRAME_HEAD: usize = 9;

/// A stream whose incoming authorities h2 can read.
pub(super) struct Lenient<T> {
    inner: T,
    filter: Filter,
}

impl<T> Lenient<T> {
    pub(super) fn new(inner: T) -> Self {
        Self { inner, filter: Filter::default() }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Lenient<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.filter.take(out) {
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; 4096];
            let mut read = ReadBuf::new(&mut bytes);
            match Pin::new(&mut this.inner).poll_read(cx, &mut read) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) if read.filled().is_empty() => {
                    this.filter.end();
                    this.filter.take(out);
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(())) => this.filter.feed(read.filled()),
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Lenient<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Cuts the bytes into frames. It never holds more than one frame of headers.
#[derive(Default)]
struct Filter {
    next: Next,
    held: Vec<u8>,
    ready: Vec<u8>,
}

/// What comes next.
#[derive(Default)]
enum Next {
    #[default]
    Preface,
    Frame,
    /// So many bytes that are no headers.
    Skip(usize),
    /// Not HTTP/2: h2 says so.
    Anything,
}

impl Filter {
    /// Whether something was taken.
    fn take(&mut self, out: &mut ReadBuf<'_>) -> bool {
        let count = self.ready.len().min(out.remaining());
        let mut taken = self.ready.drain(..count);
        out.put_slice(taken.as_slice());
        taken.by_ref().for_each(drop);
        count > 0
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        while self.step().is_some() {}
    }

    /// Nothing more comes: what is left is not whole.
    fn end(&mut self) {
        self.ready.append(&mut self.held);
    }

    /// Moves what is whole; nothing when more bytes are needed.
    fn step(&mut self) -> Option<()> {
        match self.next {
            Next::Anything => {
                self.ready.append(&mut self.held);
                None
            }
            Next::Preface => {
                let whole = self.held.get(..PREFACE.len());
                let wrong =
                    !PREFACE.starts_with(self.held.get(..PREFACE.len().min(self.held.len()))?);
                if whole.is_none() && !wrong {
                    return None;
                }
                self.next = if wrong { Next::Anything } else { Next::Frame };
                if !wrong {
                    self.pass(PREFACE.len());
                }
                Some(())
            }
            Next::Skip(left) => {
                let count = left.min(self.held.len());
                self.pass(count);
                let left = left.saturating_sub(count);
                self.next = if left == 0 { Next::Frame } else { Next::Skip(left) };
                (left == 0).then_some(())
            }
            Next::Frame => {
                let &[a, b, c, kind, flags, _, _, _, _] = self.held.first_chunk::<FRAME_HEAD>()?;
                let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).ok()?;
                let whole = length.saturating_add(FRAME_HEAD);
                // RFC 9113 section 6.2
                if kind != 1 || length > MAX_FRAME {
                    self.pass(FRAME_HEAD);
                    self.next = Next::Skip(length);
                    return Some(());
                }
                let payload = self.held.get_mut(FRAME_HEAD..whole)?;
                if let Some(block) = block(payload, flags) {
                    // What cannot be read stays as it is: h2 says what is wrong with it.
                    rewrite(block);
                }
                self.pass(whole);
                Some(())
            }
        }
    }

    fn pass(&mut self, count: usize) {
        self.ready.extend(self.held.drain(..count.min(self.held.len())));
    }
}

/// The header block without padding and priority.
fn block(payload: &mut [u8], flags: u8) -> Option<&mut [u8]> {
    const PADDED: u8 = 0x8;
    const PRIORITY: u8 = 0x20;
    let (mut begin, mut end) = (0_usize, payload.len());
    if flags & PADDED != 0 {
        end = end.checked_sub(usize::from(*payload.first()?))?;
        begin = 1;
    }
    if flags & PRIORITY != 0 {
        begin = begin.checked_add(5)?;
    }
    payload.get_mut(begin..end)
}

/// Walks over the fields (RFC 7541 section 6) and rewrites the authority among them.
fn rewrite(block: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while let Some(&first) = block.get(at) {
        // Indexed field; change of the table's size.
        if first & 0x80 != 0 {
            (_, at) = integer(block, at, 0x7f)?;
            continue;
        }
        if first & 0xe0 == 0x20 {
            (_, at) = integer(block, at, 0x1f)?;
            continue;
        }
        // Literal fields: with indexing, without, never.
        let mask = if first & 0xc0 == 0x40 { 0x3f } else { 0x0f };
        let index;
        (index, at) = integer(block, at, mask)?;
        let authority = if index == 0 {
            let (name, _) = string(block, at)?;
            at = name.end;
            block.get(name)? == b":authority"
        } else {
            // Its place in the static table.
            index == 1
        };
        let (value, huffman) = string(block, at)?;
        at = value.end;
        if authority && !huffman {
            block.get_mut(value)?.iter_mut().filter(|byte| **byte == b'%').for_each(|byte| {
                *byte = b'-';
            });
        }
    }
    Some(())
}

/// An integer (RFC 7541 section 5.1), and where it ends.
fn integer(block: &[u8], at: usize, mask: u8) -> Option<(usize, usize)> {
    let mut value = usize::from(block.get(at)? & mask);
    let mut at = at.checked_add(1)?;
    if value < usize::from(mask) {
        return Some((value, at));
    }
    for shift in [0, 7, 14, 21_u32] {
        let byte = *block.get(at)?;
        at = at.checked_add(1)?;
        value = value.checked_add(usize::from(byte & 0x7f).checked_shl(shift)?)?;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

/// Where a string (RFC 7541 section 5.2) lies, and whether it is in Huffman's code.
fn string(block: &[u8], at: usize) -> Option<(Range<usize>, bool)> {
    let huffman = block.get(at)? & 0x80 != 0;
    let (length, begin) = integer(block, at, 0x7f)?;
    Some((begin..begin.checked_add(length)?, huffman))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What gRPC's C core 58 sends for a socket in /tmp, without its other headers.
    const HEADERS: &[u8] = b"\x83\x86@\x05:path\x01/@\x0a:authority\x0atmp%2Fsock\x3f\xe1\x1f";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn filtered(bytes: &[u8], chunk: usize) -> Vec<u8> {
        let mut filter = Filter::default();
        let mut got = Vec::new();
        for bytes in bytes.chunks(chunk) {
            filter.feed(bytes);
            assert!(filter.held.len() < MAX_FRAME + FRAME_HEAD);
            got.append(&mut filter.ready);
        }
        filter.end();
        got.append(&mut filter.ready);
        got
    }

    #[test]
    fn an_authority_that_is_a_path_is_made_readable() {
        let want = String::from_utf8_lossy(HEADERS).replace("tmp%2F", "tmp-2F").len();
        let readable: Vec<u8> =
            HEADERS.iter().map(|byte| if *byte == b'%' { b'-' } else { *byte }).collect();
        assert_eq!(want, String::from_utf8_lossy(&readable).len());
        let padded = |block: &[u8]| [&[2, 0, 0, 0, 0, 9], block, &[0, 0]].concat();
        // `%` elsewhere stays: in data, in a path, in another header.
        let data = b"100%".to_vec();
        let path = b"@\x05:path\x02/%\x41\x03a%b\x10\x01x\x01%".to_vec();
        let path_want = b"@\x05:path\x02/%\x41\x03a-b\x10\x01x\x01%".to_vec();
        let bytes = |headers: &[u8], path: &[u8]| {
            [
                PREFACE.to_vec(),
                frame(4, 0, &[]),
                frame(1, 4, headers),
                frame(0, 1, &data),
                frame(1, 0x2c, &padded(headers)),
                frame(1, 4, path),
            ]
            .concat()
        };
        let (sent, want) = (bytes(HEADERS, &path), bytes(&readable, &path_want));
        for chunk in [1, 2, 7, 24, 25, 100, 10_000] {
            assert_eq!(filtered(&sent, chunk), want, "in chunks of {chunk}");
        }
    }

    #[test]
    fn what_is_not_http2_passes() {
        let other = b"GET / HTTP/1.1\r\nhost: a%2Fb\r\n\r\n";
        assert_eq!(filtered(other, 3), other);
        assert_eq!(filtered(&PREFACE[..10], 3), &PREFACE[..10]);
        let huge = [PREFACE.to_vec(), frame(1, 4, &vec![b'%'; MAX_FRAME + 1])].concat();
        assert_eq!(filtered(&huge, 1000), huge);
    }

    proptest! {
        /// Whatever comes: nothing is lost, nothing is added, and nothing but `%` is changed.
        #[test]
        fn only_percent_signs_change(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            kind in 0_u8..3,
            flags: u8,
            chunk in 1_usize..50,
        ) {
            for sent in [
                bytes.clone(),
                [PREFACE.to_vec(), bytes.clone()].concat(),
                [PREFACE.to_vec(), frame(kind, flags, &bytes)].concat(),
            ] {
                let got = filtered(&sent, chunk);
                prop_assert_eq!(got.len(), sent.len());
                for (got, sent) in got.iter().zip(&sent) {
                    prop_assert!(got == sent || (*sent == b'%' && *got == b'-'));
                }
            }
        }
    }
}
