//! Whether a point lies on P-256 or P-384.
//!
//! ring checks this only while it verifies. Here it is checked when the key set is read, so that a
//! broken key is reported once and not as a thousand bad signatures ([SEM-JWT-73]).

/// Little-endian limbs, wide enough for P-384.
type Number = [u64; 6];

/// The two curves that ring verifies on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Curve {
    P256,
    P384,
}

const P256_P: Number =
    [0xffff_ffff_ffff_ffff, 0x0000_0000_ffff_ffff, 0, 0xffff_ffff_0000_0001, 0, 0];
const P256_B: Number = [
    0x3bce_3c3e_27d2_604b,
    0x651d_06b0_cc53_b0f6,
    0xb3eb_bd55_7698_86bc,
    0x5ac6_35d8_aa3a_93e7,
    0,
    0,
];
const P384_P: Number = [
    0x0000_0000_ffff_ffff,
    0xffff_ffff_0000_0000,
    0xffff_ffff_ffff_fffe,
    0xffff_ffff_ffff_ffff,
    0xffff_ffff_ffff_ffff,
    0xffff_ffff_ffff_ffff,
];
const P384_B: Number = [
    0x2a85_c8ed_d3ec_2aef,
    0xc656_398d_8a2e_d19d,
    0x0314_088f_5013_875a,
    0x181d_9c6e_fe81_4112,
    0x988e_056b_e3f8_2d19,
    0xb331_2fa7_e23e_e7e4,
];

impl Curve {
    /// Bytes of a coordinate.
    pub(super) fn len(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }

    /// Whether y² = x³ - 3x + b, with both coordinates below the prime.
    pub(super) fn contains(self, x: &[u8], y: &[u8]) -> bool {
        let (p, b) = match self {
            Self::P256 => (P256_P, P256_B),
            Self::P384 => (P384_P, P384_B),
        };
        let field = Field { p };
        let (Some(x), Some(y)) = (field.read(x), field.read(y)) else { return false };
        let cube = field.mul(field.mul(x, x), x);
        let minus_three_x = field.negate(field.add(field.add(x, x), x));
        field.mul(y, y) == field.add(field.add(cube, minus_three_x), b)
    }
}

/// Arithmetic modulo a prime. Public values only: nothing here is constant-time.
struct Field {
    p: Number,
}

impl Field {
    /// A big-endian number below the prime.
    fn read(&self, bytes: &[u8]) -> Option<Number> {
        let mut number = Number::default();
        for (limb, chunk) in number.iter_mut().zip(bytes.rchunks(8)) {
            *limb = chunk.iter().fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
        }
        (bytes.len() <= 48 && subtract(number, self.p).1).then_some(number)
    }

    fn add(&self, a: Number, b: Number) -> Number {
        let (sum, carry) = add(a, b);
        let (reduced, borrow) = subtract(sum, self.p);
        if carry || !borrow { reduced } else { sum }
    }

    fn negate(&self, a: Number) -> Number {
        if a == Number::default() { a } else { subtract(self.p, a).0 }
    }

    /// Double and add, from the top bit down.
    fn mul(&self, a: Number, b: Number) -> Number {
        let mut product = Number::default();
        for limb in b.iter().rev() {
            for bit in (0..u64::BITS).rev() {
                product = self.add(product, product);
                if (limb >> bit) & 1 == 1 {
                    product = self.add(product, a);
                }
            }
        }
        product
    }
}

fn add(a: Number, b: Number) -> (Number, bool) {
    limbs(a, b, u64::overflowing_add)
}

fn subtract(a: Number, b: Number) -> (Number, bool) {
    limbs(a, b, u64::overflowing_sub)
}

/// Applies an operation limb by limb and hands the carry on.
fn limbs(mut a: Number, b: Number, step: fn(u64, u64) -> (u64, bool)) -> (Number, bool) {
    let mut carry = false;
    for (left, right) in a.iter_mut().zip(b) {
        let (value, first) = step(*left, right);
        let (value, second) = step(value, u64::from(carry));
        *left = value;
        carry = first || second;
    }
    (a, carry)
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{self, EcdsaKeyPair, KeyPair};

    use super::*;

    #[test]
    fn sem_jwt_73_points_of_the_curve_and_only_those() {
        let random = SystemRandom::new();
        for (curve, algorithm) in [
            (Curve::P256, &signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            (Curve::P384, &signature::ECDSA_P384_SHA384_FIXED_SIGNING),
        ] {
            for _ in 0..20 {
                let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
                let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
                let point = pair.public_key().as_ref();
                let (x, y) = point[1..].split_at(curve.len());
                assert!(curve.contains(x, y));
                assert!(!curve.contains(y, x));
                let mut off = y.to_vec();
                off[0] ^= 1;
                assert!(!curve.contains(x, &off));
            }
            assert!(!curve.contains(&[0; 32], &[0; 32]), "infinity");
            assert!(!curve.contains(&[0xff; 48], &[0xff; 48]), "not below the prime");
        }
    }
}
