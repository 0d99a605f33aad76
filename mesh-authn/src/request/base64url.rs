//! Base64url as Envoy reads it, with a note of everything that is not canonical.

use std::borrow::Cow;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use super::options::Tolerance;

/// The one right spelling, read with the vector instructions of the machine where it has them.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
static CANONICAL: LazyLock<base64::engine::Simd> =
    LazyLock::new(|| base64::engine::Simd::url_safe(base64::engine::general_purpose::NO_PAD));

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
static CANONICAL: LazyLock<GeneralPurpose> =
    LazyLock::new(|| base64::engine::general_purpose::URL_SAFE_NO_PAD);

/// Ignores unused bits; padding is absent or exact.
const LOOSE: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// As [`decode`], into a buffer where it is large enough.
pub(super) fn decode_in<'b>(
    buffer: &'b mut [u8],
    text: &[u8],
    findings: &mut Vec<Tolerance>,
) -> Option<Cow<'b, [u8]>> {
    match CANONICAL.decode_slice(text, buffer) {
        Ok(len) => buffer.get(..len).map(Cow::Borrowed),
        Err(_) => decode(text, findings).map(Cow::Owned),
    }
}

/// Decodes what Envoy decodes; what a strict reader would refuse goes into `findings`
/// ([SEM-JWT-16]).
pub(super) fn decode(text: &[u8], findings: &mut Vec<Tolerance>) -> Option<Vec<u8>> {
    if let Ok(bytes) = CANONICAL.decode(text) {
        return Some(bytes);
    }
    let mut dense: Vec<u8> = text.iter().copied().filter(|byte| !is_space(*byte)).collect();
    if dense.len() != text.len() {
        findings.push(Tolerance::LooseBase64);
    }
    let padded = dense.len();
    while dense.last() == Some(&b'=') {
        dense.pop();
    }
    let padding = padded.saturating_sub(dense.len());
    if padding > 0 {
        if padding > 2 || padded.checked_rem(4) != Some(0) {
            return None;
        }
        findings.push(Tolerance::Base64Padding);
    }
    let bytes = LOOSE.decode(&dense).ok()?;
    if CANONICAL.decode(&dense).is_err() {
        findings.push(Tolerance::LooseBase64);
    }
    Some(bytes)
}

/// C's `isspace`, which has the vertical tab.
fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, want: Option<(&[u8], &[Tolerance])>) {
        let mut findings = Vec::new();
        let bytes = decode(text.as_bytes(), &mut findings);
        assert_eq!(bytes.as_deref(), want.map(|(bytes, _)| bytes), "{text:?}");
        if let Some((_, expected)) = want {
            assert_eq!(findings, expected, "{text:?}");
        }
    }

    /// The quick reader and the simple one say the same, at every length and for a wrong byte at
    /// every place.
    #[test]
    fn sem_jwt_16_vector_instructions_change_nothing() {
        let simple = base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let bytes: Vec<u8> = (0..300).map(|n: u32| (n * 167 % 251).to_le_bytes()[0]).collect();
        for len in 0..bytes.len() {
            let text = simple.encode(&bytes[..len]);
            assert_eq!(CANONICAL.decode(&text).as_deref(), Ok(&bytes[..len]));
        }
        let good = simple.encode(&bytes).into_bytes();
        for at in 0..good.len() {
            for wrong in [b'+', b'/', b'=', b' ', b'.', 0, 0x80, 0xff] {
                let mut text = good.clone();
                text[at] = wrong;
                assert_eq!(CANONICAL.decode(&text).is_err(), simple.decode(&text).is_err());
                assert!(CANONICAL.decode(&text).is_err(), "{wrong:#x} at {at}");
            }
        }
    }

    #[test]
    fn sem_jwt_16_what_is_not_canonical_is_noted() {
        check("YWI", Some((b"ab", &[])));
        check("YWI=", Some((b"ab", &[Tolerance::Base64Padding])));
        check("YW J", Some((b"ab", &[Tolerance::LooseBase64, Tolerance::LooseBase64])));
        check("YWJ", Some((b"ab", &[Tolerance::LooseBase64])));
        for bad in ["YWI==", "YQ=", "Y", "YW+I", "YW/I", "Y=WI", "====", "YWI%"] {
            check(bad, None);
        }
    }
}
