//! Claims as `google.protobuf.Struct` and back.

use prost_types::value::Kind;
use prost_types::{ListValue, Struct};
use serde_json::{Map, Number, Value};

/// How deep values may be nested; JSON documents are limited to the same (serde_json).
const MAX_DEPTH: usize = 128;

/// Why claims cannot be told.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimsError {
    /// A number that is infinite or none.
    #[error("a number is not finite")]
    NotFinite,

    /// Lists and objects within one another beyond any use.
    #[error("values are nested more than {MAX_DEPTH} deep")]
    TooDeep,
}

/// Claims for `ValidateJwtSvidResponse`.
///
/// A `Struct` knows no integers: numbers beyond 2^53 lose their last digits.
///
/// # Errors
///
/// [`ClaimsError::TooDeep`].
pub fn encode_claims(claims: &Map<String, Value>) -> Result<Struct, ClaimsError> {
    encode_map(claims, MAX_DEPTH)
}

fn encode_map(map: &Map<String, Value>, depth: usize) -> Result<Struct, ClaimsError> {
    let depth = depth.checked_sub(1).ok_or(ClaimsError::TooDeep)?;
    let fields = map.iter().map(|(name, value)| Ok((name.clone(), encode_value(value, depth)?)));
    Ok(Struct { fields: fields.collect::<Result<_, ClaimsError>>()? })
}

fn encode_value(value: &Value, depth: usize) -> Result<prost_types::Value, ClaimsError> {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().ok_or(ClaimsError::NotFinite)?),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(items) => {
            let depth = depth.checked_sub(1).ok_or(ClaimsError::TooDeep)?;
            let values = items.iter().map(|item| encode_value(item, depth));
            Kind::ListValue(ListValue { values: values.collect::<Result<_, _>>()? })
        }
        Value::Object(map) => Kind::StructValue(encode_map(map, depth)?),
    };
    Ok(prost_types::Value { kind: Some(kind) })
}

/// Claims of a `ValidateJwtSvidResponse`.
///
/// A whole number comes back as one: `Struct` holds them all as floating point.
///
/// # Errors
///
/// [`ClaimsError`].
pub fn parse_claims(claims: &Struct) -> Result<Map<String, Value>, ClaimsError> {
    parse_struct(claims, MAX_DEPTH)
}

fn parse_struct(claims: &Struct, depth: usize) -> Result<Map<String, Value>, ClaimsError> {
    let depth = depth.checked_sub(1).ok_or(ClaimsError::TooDeep)?;
    let fields =
        claims.fields.iter().map(|(name, value)| Ok((name.clone(), parse_value(value, depth)?)));
    fields.collect()
}

fn parse_value(value: &prost_types::Value, depth: usize) -> Result<Value, ClaimsError> {
    Ok(match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => Value::Bool(*value),
        Some(Kind::NumberValue(number)) => Value::Number(parse_number(*number)?),
        Some(Kind::StringValue(text)) => Value::String(text.clone()),
        Some(Kind::ListValue(list)) => {
            let depth = depth.checked_sub(1).ok_or(ClaimsError::TooDeep)?;
            let items = list.values.iter().map(|item| parse_value(item, depth));
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        Some(Kind::StructValue(map)) => Value::Object(parse_struct(map, depth)?),
    })
}

/// What floating point holds exactly is read as the integer it was.
fn parse_number(number: f64) -> Result<Number, ClaimsError> {
    let float = Number::from_f64(number).ok_or(ClaimsError::NotFinite)?;
    // The text of a whole number below 2^53 is that number.
    let whole = number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0;
    let integer = if whole { format!("{number:.0}").parse::<i64>().ok() } else { None };
    Ok(integer.map_or(float, Number::from))
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_survive_the_wire() {
        let claims = json!({
            "sub": "spiffe://td/a", "aud": ["x", "y"], "exp": 1_800_000_000, "share": 0.5,
            "none": null, "yes": true, "deep": {"list": [[-1, {}], ""]},
        });
        let claims = claims.as_object().unwrap();
        let wire = encode_claims(claims).unwrap().encode_to_vec();
        let back = parse_claims(&Struct::decode(wire.as_slice()).unwrap()).unwrap();
        assert_eq!(&back, claims);
    }

    #[test]
    fn depth_and_numbers_are_limited() {
        let mut value = json!(1);
        for _ in 0..200 {
            value = json!([value]);
        }
        let mut claims = Map::new();
        claims.insert("a".to_owned(), value);
        assert_eq!(encode_claims(&claims), Err(ClaimsError::TooDeep));
        for number in [f64::NAN, f64::INFINITY] {
            let value = prost_types::Value { kind: Some(Kind::NumberValue(number)) };
            let claims = Struct { fields: [("a".to_owned(), value)].into() };
            assert_eq!(parse_claims(&claims), Err(ClaimsError::NotFinite));
        }
    }
}
