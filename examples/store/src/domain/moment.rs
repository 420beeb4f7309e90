//! Moments as an operator writes them. Pure.

use std::str::FromStr;

use thiserror::Error;

/// A product to release, and when: `1` at once, `1@+30` in 30 seconds, `1@1767225600` at this second since 1970, and
/// `1@2026-01-31T20:00:00Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleaseAt {
    /// The product.
    pub product: i64,
    /// When.
    pub at: Moment,
}

/// A moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// At once.
    Now,
    /// After so many seconds.
    In(u32),
    /// At this second since 1970.
    At(i64),
}

/// A moment that cannot be read.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("expected ID, ID@+SECONDS, ID@SECONDS since 1970, or ID@YYYY-MM-DDTHH:MM:SSZ")]
pub struct MomentError;

impl Moment {
    /// The moment in milliseconds since 1970, by this time of now.
    #[must_use]
    pub fn in_ms(self, now_ms: i64) -> i64 {
        match self {
            Self::Now => now_ms,
            Self::In(seconds) => now_ms.saturating_add(i64::from(seconds).saturating_mul(1000)),
            Self::At(seconds) => seconds.saturating_mul(1000),
        }
    }
}

impl FromStr for ReleaseAt {
    type Err = MomentError;

    fn from_str(text: &str) -> Result<Self, MomentError> {
        let (product, at) = match text.split_once('@') {
            None => (text, Moment::Now),
            Some((product, at)) => (product, at.parse()?),
        };
        Ok(Self { product: product.parse().map_err(|_| MomentError)?, at })
    }
}

impl FromStr for Moment {
    type Err = MomentError;

    fn from_str(text: &str) -> Result<Self, MomentError> {
        if let Some(seconds) = text.strip_prefix('+') {
            return seconds.parse().map(Self::In).map_err(|_| MomentError);
        }
        match text.parse() {
            Ok(seconds) => Ok(Self::At(seconds)),
            Err(_) => utc(text).map(Self::At).ok_or(MomentError),
        }
    }
}

/// The second since 1970 of a date and time in UTC.
fn utc(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, by: char| -> Option<[i64; 3]> {
        let all: Option<Vec<i64>> = text.split(by).map(|part| part.parse().ok()).collect();
        all?.try_into().ok()
    };
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    let is_valid = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second);
    // Years begin in March here, so the day that leap years add is their last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let since_1970 = days - 719_468;
    is_valid.then_some(((since_1970 * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_read_in_each_of_its_forms() {
        let read = |text: &str| text.parse::<ReleaseAt>().map(|it| (it.product, it.at));
        assert_eq!(read("1"), Ok((1, Moment::Now)));
        assert_eq!(read("2@+30"), Ok((2, Moment::In(30))));
        assert_eq!(read("2@1767225600"), Ok((2, Moment::At(1_767_225_600))));
        assert_eq!(read("2@1970-01-01T00:00:00Z"), Ok((2, Moment::At(0))));
        assert_eq!(read("2@2026-01-01T00:00:00Z"), Ok((2, Moment::At(1_767_225_600))));
        assert_eq!(read("2@2024-02-29T12:30:15Z"), Ok((2, Moment::At(1_709_209_815))));
        for wrong in ["", "x", "1@", "1@+", "1@soon", "1@2026-13-01T00:00:00Z", "1@2026-01-01"] {
            assert_eq!(read(wrong), Err(MomentError), "{wrong}");
        }
    }

    #[test]
    fn a_moment_is_counted_from_now() {
        assert_eq!(Moment::Now.in_ms(5), 5);
        assert_eq!(Moment::In(2).in_ms(5), 2005);
        assert_eq!(Moment::At(2).in_ms(5), 2000);
    }
}
