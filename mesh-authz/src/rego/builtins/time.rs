//! OPA's calendar functions, in UTC: other time zones would need a database.

use regorus::Value;

use super::Fault;
use super::supplied::text;

const NANOS: i128 = 1_000_000_000;
const DAY: i128 = 86_400;

/// `time.clock(ns)`: hour, minute and second.
pub(super) fn clock(args: &[Value]) -> Result<Value, Fault> {
    let second = seconds(args)?.rem_euclid(DAY);
    triple([second / 3600, second / 60 % 60, second % 60])
}

/// `time.date(ns)`: year, month and day.
pub(super) fn date(args: &[Value]) -> Result<Value, Fault> {
    let (year, month, day) = civil(seconds(args)?.div_euclid(DAY));
    triple([year, month, day])
}

/// `time.weekday(ns)`: the English name.
pub(super) fn weekday(args: &[Value]) -> Result<Value, Fault> {
    let names = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let day = seconds(args)?.div_euclid(DAY).rem_euclid(7);
    let name = usize::try_from(day).ok().and_then(|day| names.get(day));
    name.map(|name| Value::from(*name)).ok_or(Fault::Failed)
}

/// `time.parse_rfc3339_ns(text)`.
pub(super) fn parse_rfc3339_ns(args: &[Value]) -> Result<Value, Fault> {
    let nanos = rfc3339(text(args, 0)?).ok_or(Fault::Failed)?;
    // As OPA: within what an i64 of nanoseconds can say.
    i64::try_from(nanos).map(Value::from).map_err(|_out_of_range| Fault::Failed)
}

/// The instant of nanoseconds, or of nanoseconds with the zone UTC.
fn seconds(args: &[Value]) -> Result<i128, Fault> {
    let nanos = match args {
        [number @ Value::Number(_)] => number.as_i64(),
        [Value::Array(pair)] => match pair.as_slice() {
            [number @ Value::Number(_), Value::String(zone)] if matches!(&**zone, "" | "UTC") => {
                number.as_i64()
            }
            _ => return Err(Fault::Failed),
        },
        _ => return Err(Fault::Failed),
    };
    nanos.map(|nanos| i128::from(nanos).div_euclid(NANOS)).map_err(|_no_integer| Fault::Failed)
}

fn triple(parts: [i128; 3]) -> Result<Value, Fault> {
    let parts = parts.map(|part| i64::try_from(part).map(Value::from));
    let parts = parts.into_iter().collect::<Result<Vec<_>, _>>();
    parts.map(Value::from).map_err(|_out_of_range| Fault::Failed)
}

/// Year, month and day of a day counted from 1970-01-01 (proleptic Gregorian).
#[expect(clippy::arithmetic_side_effects, reason = "an i64 of nanoseconds is 300 years")]
fn civil(days: i128) -> (i128, i128, i128) {
    // Years begin in March, so that the leap day is the last of its year.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era;
    (if month <= 2 { year + 1 } else { year }, month, day)
}

/// Days from 1970-01-01 to a date of the years 0 to 9999.
#[expect(clippy::arithmetic_side_effects, reason = "four digits of a year")]
fn days(year: i128, month: i128, day: i128) -> i128 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Nanoseconds of `2006-01-02T15:04:05.999999999Z07:00`.
#[expect(clippy::arithmetic_side_effects, reason = "every part is checked to be small")]
fn rfc3339(text: &str) -> Option<i128> {
    let digits = |at: std::ops::Range<usize>| -> Option<i128> {
        let part = text.get(at)?;
        part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok())?
    };
    let fixed = |at: usize, want: &[u8]| text.as_bytes().get(at).is_some_and(|b| want.contains(b));
    if ![(4, &b"-"[..]), (7, b"-"), (10, b"T"), (13, b":"), (16, b":")]
        .iter()
        .all(|(at, want)| fixed(*at, want))
    {
        return None;
    }
    let (year, month, day) = (digits(0..4)?, digits(5..7)?, digits(8..10)?);
    let (hour, minute, second) = (digits(11..13)?, digits(14..16)?, digits(17..19)?);
    if !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 59 || day < 1 {
        return None;
    }
    if civil(days(year, month, day)) != (year, month, day) {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix(['.', ',']) {
        let length = fraction.bytes().take_while(u8::is_ascii_digit).count();
        let (fraction, after) = fraction.split_at_checked(length)?;
        let kept: String = fraction.chars().chain("000000000".chars()).take(9).collect();
        nanos = if length == 0 { return None } else { kept.parse().ok()? };
        rest = after;
    }
    let offset = match rest {
        "Z" => 0,
        zone => {
            let sign = if zone.starts_with('+') { 1 } else { -1 };
            let (hours, minutes) = zone.strip_prefix(['+', '-'])?.split_once(':')?;
            let part = |text: &str, most: i128| -> Option<i128> {
                let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
                text.parse().ok().filter(|value| digits && *value <= most)
            };
            sign * (part(hours, 23)? * 3600 + part(minutes, 59)? * 60)
        }
    };
    let seconds = days(year, month, day) * DAY + hour * 3600 + minute * 60 + second - offset;
    Some(seconds * NANOS + nanos)
}
