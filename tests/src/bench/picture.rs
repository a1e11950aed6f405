//! A picture of the comparisons: one row of bars for each, Weft's filled, all as shares of the longest in their row.

use std::fmt::Write;

use crate::{
    compare::{Comparison, Series},
    report::{number, quantile},
};

const WIDTH: usize = 760;
const LABEL: usize = 170;
const BAR: usize = 430;
const LINE: usize = 20;
const HEAD: usize = 34;
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#333}.t{font-weight:600}.v{fill:#666}\
    .o{fill:#b8c0cc}.w{fill:#1f6feb}.m{stroke:#333;stroke-width:1}\
    @media(prefers-color-scheme:dark){text{fill:#ddd}.v{fill:#aaa}.o{fill:#4a5260}.m{stroke:#ddd}}";

/// As SVG.
pub fn draw(all: &[Comparison]) -> String {
    let height = 10 + all.iter().map(|one| HEAD + LINE * one.series.len()).sum::<usize>();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
         <title>CPU of the proxies for each unit of work: bars are medians, ticks the least</title>\n\
         <style>{STYLE}</style>\n"
    );
    let mut top = 0;
    for comparison in all {
        let title = format!("{}, {}", comparison.title, comparison.unit.cost());
        let _ = writeln!(svg, "<text class=\"t\" x=\"10\" y=\"{}\">{}</text>", top + 24, escaped(&title));
        let medians = comparison.series.iter().map(|one| quantile(&one.cost, 0.5));
        let longest = medians.fold(f64::MIN_POSITIVE, f64::max);
        top += HEAD;
        for one in &comparison.series {
            bar(&mut svg, one, top, longest);
            top += LINE;
        }
    }
    svg + "</svg>\n"
}

fn bar(svg: &mut String, one: &Series, top: usize, longest: f64) {
    let (median, least) = (quantile(&one.cost, 0.5), quantile(&one.cost, 0.0));
    let length = |value: f64| value / longest * BAR as f64;
    let class = if one.way == "weft" { "w" } else { "o" };
    let tick = LABEL as f64 + length(least);
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
         <rect class=\"{class}\" x=\"{LABEL}\" y=\"{}\" width=\"{:.1}\" height=\"14\"/>\
         <path class=\"m\" d=\"M{tick:.1} {}v14\"/><text class=\"v\" x=\"{:.1}\" y=\"{}\">{}</text>",
        LABEL - 8,
        top + 12,
        escaped(one.way),
        top + 1,
        length(median),
        top + 1,
        LABEL as f64 + length(median) + 6.0,
        top + 12,
        number(median),
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_shares_of_the_longest() {
        let svg = draw(&[crate::report::tests::comparison()]);
        // Medians 10 and 12, of which the second is the longest.
        assert!(svg.contains("class=\"o\" x=\"170\" y=\"35\" width=\"358.3\""), "{svg}");
        assert!(svg.contains("class=\"w\" x=\"170\" y=\"55\" width=\"430.0\""), "{svg}");
    }
}
