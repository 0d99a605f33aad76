//! The table of builtins, sorted by name.

use std::sync::OnceLock;

use regorus::LimitError;

use super::cost::Cost;
use super::jwt::{self, Algorithm};
use super::{
    Builtin, Link, Native, glob, native, net, operators, or_undefined, packed, packed_with_now,
    plain, supplied, time,
};

/// A function of regorus, with what its arguments may cost.
macro_rules! native {
    ($name:literal, $cost:ident) => {{
        static BUILTIN: Native =
            Native { name: $name, cost: Cost::$cost, function: OnceLock::new() };
        Builtin {
            name: $name,
            link: Link::Native,
            deny: (
                |span, params, args, _| {
                    native(&BUILTIN, span, params, args, true)
                        .map_err(|fault| LimitError::from(fault).into())
                },
                0,
            ),
            undefined: (
                |span, params, args, _| {
                    or_undefined(native(&BUILTIN, span, params, args, false))
                        .map_err(|fault| LimitError::from(fault).into())
                },
                0,
            ),
        }
    }};
}

/// One of our functions; `$args` of the virtual machine become those of the function.
macro_rules! ours {
    ($name:literal, $link:expr, |$args:ident| $call:expr) => {
        Builtin {
            name: $name,
            link: $link,
            deny: (|_, _, $args, _| $call.map_err(|fault| LimitError::from(fault).into()), 0),
            undefined: (
                |_, _, $args, _| {
                    or_undefined($call).map_err(|fault| LimitError::from(fault).into())
                },
                0,
            ),
        }
    };
}

pub(super) static TABLE: &[Builtin] = &[
    native!("__builtin_sets.intersection", Compared),
    native!("__builtin_sets.union", Compared),
    ours!("_add", Link::Operator, |args| operators::add(args)),
    ours!("_agree", Link::Operator, |args| operators::agree(args)),
    ours!("_contains", Link::Operator, |args| operators::contains(args)),
    ours!("_defined", Link::Operator, |args| operators::defined(args)),
    ours!("_div", Link::Operator, |args| operators::div(args)),
    ours!("_mod", Link::Operator, |args| operators::modulo(args)),
    ours!("_mul", Link::Operator, |args| operators::mul(args)),
    ours!("_not_empty", Link::Operator, |args| operators::not_empty(args)),
    ours!("_now", Link::Operator, |args| operators::now(args)),
    ours!("_sub", Link::Operator, |args| operators::sub(args)),
    ours!("_unique", Link::Operator, |args| operators::unique(args)),
    ours!("_weigh1", Link::Operator, |args| operators::weigh(args)),
    ours!("_weigh2", Link::Operator, |args| operators::weigh(args)),
    ours!("_weigh_in", Link::Operator, |args| operators::weigh_search(args)),
    ours!("_weigh_pair", Link::Operator, |args| operators::weigh_comparison(args)),
    native!("abs", Free),
    native!("array.concat", Few),
    native!("array.reverse", Few),
    native!("array.slice", Few),
    native!("base64.decode", Measured),
    native!("base64.encode", Measured),
    native!("base64.is_valid", Measured),
    native!("base64url.decode", Measured),
    native!("base64url.encode", Measured),
    native!("base64url.encode_no_pad", Measured),
    native!("bits.and", Free),
    native!("bits.lsh", Shift),
    native!("bits.negate", Free),
    native!("bits.or", Free),
    native!("bits.rsh", Shift),
    native!("bits.xor", Free),
    native!("ceil", Free),
    native!("concat", Concat),
    native!("contains", Measured),
    native!("count", Free),
    ours!("crypto.hmac.equal", Link::Packed(2), |args| packed(supplied::hmac_equal, args)),
    ours!("crypto.hmac.md5", Link::Packed(2), |args| packed(supplied::hmac_md5, args)),
    ours!("crypto.hmac.sha1", Link::Packed(2), |args| packed(
        |args| supplied::hmac(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, args),
        args
    )),
    ours!("crypto.hmac.sha256", Link::Packed(2), |args| packed(
        |args| supplied::hmac(ring::hmac::HMAC_SHA256, args),
        args
    )),
    ours!("crypto.hmac.sha512", Link::Packed(2), |args| packed(
        |args| supplied::hmac(ring::hmac::HMAC_SHA512, args),
        args
    )),
    ours!("crypto.md5", Link::Packed(1), |args| packed(supplied::md5, args)),
    ours!("crypto.sha1", Link::Packed(1), |args| packed(supplied::sha1, args)),
    ours!("crypto.sha256", Link::Packed(1), |args| packed(supplied::sha256, args)),
    native!("endswith", Free),
    native!("floor", Free),
    native!("format_int", Measured),
    ours!("glob.match", Link::Native, |args| glob::matches(args)),
    native!("glob.quote_meta", Pattern),
    native!("hex.decode", Measured),
    native!("hex.encode", Measured),
    native!("indexof", Search),
    native!("indexof_n", Search),
    native!("intersection", Measured),
    ours!("io.jwt.decode", Link::Packed(1), |args| packed(jwt::decode, args)),
    ours!("io.jwt.decode_verify", Link::PackedWithNow(2), |args| packed_with_now(
        jwt::decode_verify,
        args
    )),
    ours!("io.jwt.verify_eddsa", Link::Packed(2), |args| packed(
        |args| jwt::verify(Algorithm::EdDsa, args),
        args
    )),
    ours!("io.jwt.verify_es256", Link::Packed(2), |args| packed(
        |args| jwt::verify(Algorithm::Es256, args),
        args
    )),
    ours!("io.jwt.verify_es384", Link::Packed(2), |args| packed(
        |args| jwt::verify(Algorithm::Es384, args),
        args
    )),
    #[cfg(feature = "es512")]
    ours!("io.jwt.verify_es512", Link::Packed(2), |args| packed(
        |args| jwt::verify(Algorithm::Es512, args),
        args
    )),
    ours!("io.jwt.verify_hs256", Link::Packed(2), |args| packed(
        |args| jwt::verify_secret(Algorithm::Hs256, args),
        args
    )),
    ours!("io.jwt.verify_hs384", Link::Packed(2), |args| packed(
        |args| jwt::verify_secret(Algorithm::Hs384, args),
        args
    )),
    ours!("io.jwt.verify_hs512", Link::Packed(2), |args| packed(
        |args| jwt::verify_secret(Algorithm::Hs512, args),
        args
    )),
    ours!("io.jwt.verify_ps256", Link::Packed(2), |args| packed(
        |args| jwt::verify(Algorithm::Ps256, args),
        args
    )),
    ours!("io.jwt.verify_ps384", Link::Packed(2), |args| packed(
        |args| jwt::verify(Algorithm::Ps384, args),
        args
    )),
    ours!("io.jwt.verify_ps512", Link::Packed(2), |args| packed(
        |args| jwt::verify(Algorithm::Ps512, args),
        args
    )),
    ours!("io.jwt.verify_rs256", Link::Packed(2), |args| packed(
        |args| jwt::verify(Algorithm::Rs256, args),
        args
    )),
    ours!("io.jwt.verify_rs384", Link::Packed(2), |args| packed(
        |args| jwt::verify(Algorithm::Rs384, args),
        args
    )),
    ours!("io.jwt.verify_rs512", Link::Packed(2), |args| packed(
        |args| jwt::verify(Algorithm::Rs512, args),
        args
    )),
    native!("is_array", Free),
    native!("is_boolean", Free),
    native!("is_null", Free),
    native!("is_number", Free),
    native!("is_object", Free),
    native!("is_set", Free),
    native!("is_string", Free),
    native!("json.filter", Measured),
    ours!("json.is_valid", Link::Native, |args| plain(supplied::json_is_valid, args)),
    native!("json.marshal", Measured),
    native!("json.remove", Measured),
    ours!("json.unmarshal", Link::Native, |args| plain(supplied::json_unmarshal, args)),
    native!("lower", Measured),
    native!("max", Compared),
    native!("min", Compared),
    ours!("net.cidr_contains", Link::Packed(2), |args| packed(net::cidr_contains, args)),
    ours!("net.cidr_contains_matches", Link::Packed(2), |args| packed(
        net::cidr_contains_matches,
        args
    )),
    ours!("net.cidr_intersects", Link::Packed(2), |args| packed(net::cidr_intersects, args)),
    ours!("net.cidr_is_valid", Link::Packed(1), |args| packed(
        |args| Ok(net::cidr_is_valid(args)),
        args
    )),
    ours!("net.cidr_merge", Link::Packed(1), |args| packed(net::cidr_merge, args)),
    native!("numbers.range", Range),
    native!("numbers.range_step", Range),
    native!("object.filter", Compared),
    native!("object.get", Free),
    native!("object.keys", Few),
    native!("object.remove", Compared),
    native!("object.subset", Measured),
    native!("object.union", Compared),
    native!("object.union_n", Measured),
    native!("product", Product),
    native!("regex.is_valid", Pattern),
    native!("regex.match", Pattern),
    native!("regex.replace", RegexReplace),
    native!("regex.split", RegexSplit),
    native!("replace", Replace),
    native!("round", Free),
    native!("semver.compare", Measured),
    native!("semver.is_valid", Measured),
    native!("sort", Compared),
    native!("split", Measured),
    native!("sprintf", Sprintf),
    native!("startswith", Free),
    native!("strings.any_prefix_match", Search),
    native!("strings.any_suffix_match", Search),
    native!("strings.count", Search),
    native!("strings.reverse", Measured),
    native!("substring", Measured),
    native!("sum", Few),
    ours!("time.clock", Link::Packed(1), |args| packed(time::clock, args)),
    ours!("time.date", Link::Packed(1), |args| packed(time::date, args)),
    ours!("time.now_ns", Link::Context, |_args| supplied::never()),
    ours!("time.parse_rfc3339_ns", Link::Packed(1), |args| packed(time::parse_rfc3339_ns, args)),
    ours!("time.weekday", Link::Packed(1), |args| packed(time::weekday, args)),
    ours!("to_number", Link::Native, |args| plain(supplied::to_number, args)),
    native!("trim", Search),
    native!("trim_left", Search),
    native!("trim_prefix", Measured),
    native!("trim_right", Search),
    native!("trim_space", Measured),
    native!("trim_suffix", Measured),
    native!("type_name", Free),
    native!("union", Measured),
    native!("upper", Measured),
];
