//! The trend of a quantity over time. Pure.

/// The slope of a line through points, by least squares; 0 for fewer than two.
pub(crate) fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let both: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    if spread > 0.0 { both / spread } else { 0.0 }
}

/// The mean of the values of points; 0 for none.
pub(crate) fn mean(points: &[(f64, f64)]) -> f64 {
    points.iter().map(|point| point.1).sum::<f64>() / points.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_that_of_the_line() {
        let line: Vec<_> = (0..10).map(|n| (f64::from(n), 5.0 + 3.0 * f64::from(n))).collect();
        assert!((slope(&line) - 3.0).abs() < 1e-9, "{}", slope(&line));
        let level = [(0.0, 4.0), (1.0, 6.0), (2.0, 6.0), (3.0, 4.0)];
        assert!(slope(&level).abs() < 1e-9, "{}", slope(&level));
        assert!((mean(&level) - 5.0).abs() < 1e-9);
        assert!(slope(&[]).abs() < 1e-9 && slope(&[(1.0, 1.0)]).abs() < 1e-9);
    }
}
