//! Base64url as Envoy reads it, with a note of everything that is not canonical.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};

use super::options::Tolerance;

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
    match URL_SAFE_NO_PAD.decode_slice(text, buffer) {
        Ok(len) => buffer.get(..len).map(Cow::Borrowed),
        Err(_) => decode(text, findings).map(Cow::Owned),
    }
}

/// Decodes what Envoy decodes; what a strict reader would refuse goes into `findings`
/// ([SEM-JWT-16]).
pub(super) fn decode(text: &[u8], findings: &mut Vec<Tolerance>) -> Option<Vec<u8>> {
    if let Ok(bytes) = URL_SAFE_NO_PAD.decode(text) {
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
    if URL_SAFE_NO_PAD.decode(&dense).is_err() {
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
