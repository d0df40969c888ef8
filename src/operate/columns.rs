//! Lays out a table that a command prints: each column is as wide as its widest cell. Pure.

/// The first row is the head. Columns from `numbers` on are aligned to the right.
pub fn aligned(rows: &[Vec<String>], numbers: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            match column < numbers {
                true => format!("{cell:width$}  "),
                false => format!("{cell:>width$}  "),
            }
        });
        cells.collect::<String>().trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let rows = [["NAME", "TURNS"], ["a-long-name", "7"], ["b", "1234567"]]
            .map(|row| row.map(str::to_owned).to_vec());
        let expected = "NAME           TURNS\na-long-name        7\nb            1234567\n";
        assert_eq!(aligned(&rows, 1), expected);
        assert_eq!(aligned(&[], 1), "");
    }
}
