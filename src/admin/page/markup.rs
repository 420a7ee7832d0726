//! HTML that cannot be broken by what it shows: markup is written in this program, and everything else is text.

use std::fmt::{self, Display, Write};

/// A document, or a part of one, as it grows.
#[derive(Debug, Default)]
pub struct Markup(String);

impl Markup {
    /// Markup, which is never made at run time.
    pub fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Text, in an element or in an attribute's double quotes.
    pub fn text(&mut self, text: impl Display) -> &mut Self {
        write!(Escaped(&mut self.0), "{text}").expect("a String takes all");
        self
    }

    /// A cell of a table, with these classes.
    pub fn cell(&mut self, class: &'static str, text: impl Display) -> &mut Self {
        self.raw("<td class=\"").raw(class).raw("\">");
        self.text(text).raw("</td>")
    }

    pub fn into_string(self) -> String {
        self.0
    }
}

struct Escaped<'s>(&'s mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                // A path must not look like another one.
                _ if character.is_control() || turns_around(character) => self.0.push('\u{fffd}'),
                _ => self.0.push(character),
            }
        }
        Ok(())
    }
}

/// Marks that change the direction in which what follows is shown.
fn turns_around(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text_wherever_it_stands() {
        let mut html = Markup::default();
        html.raw("<a title=\"").text("\" onload='x'").raw("\">");
        html.text("</a><script>&\u{0}\u{202e}\n é").raw("</a>");
        assert_eq!(
            html.into_string(),
            "<a title=\"&quot; onload=&#39;x&#39;\">\
             &lt;/a&gt;&lt;script&gt;&amp;\u{fffd}\u{fffd}\u{fffd} é</a>"
        );
    }
}
