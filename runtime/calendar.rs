//! Days and dates of the proleptic Gregorian calendar.

/// Years are counted from March, so that the leap day is the last of its year; so many days lie
/// before 1970.
const BEFORE: u64 = 719_468;

/// Year, month and day, `days` after 1970-01-01.
pub(crate) fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + BEFORE;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Days from 1970-01-01 to a date of 1970 to 9999; nothing for what is none.
pub(crate) fn days((year, month, day): (u64, u64, u64)) -> Option<u64> {
    if !((1970..10_000).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day)) {
        return None;
    }
    let year = year - u64::from(month <= 2);
    let march_month = (month + 9) % 12;
    let of_year = (153 * march_month + 2) / 5 + day - 1;
    let days = (365 * year + year / 4 - year / 100 + year / 400 + of_year).checked_sub(BEFORE)?;
    (civil(days).1 == month).then_some(days)
}

#[cfg(test)]
mod tests {
    use crate::calendar::{civil, days};

    #[test]
    fn dates_and_days_are_each_others() {
        assert_eq!((civil(0), civil(20_786)), ((1970, 1, 1), (2026, 11, 29)));
        for n in (0..2_900_000).step_by(17) {
            assert_eq!(days(civil(n)), Some(n), "{:?}", civil(n));
        }
        let none = [(1969, 12, 31), (2026, 13, 1), (2026, 2, 29), (2026, 4, 31), (2026, 1, 0)];
        assert!(none.into_iter().all(|date| days(date).is_none()));
        assert!(days((2024, 2, 29)).is_some());
    }
}
