//! The operator's error pages, in place of the gateway's own texts.
//!
//! Read when the gateway starts and on a reload, never for a request. What is filled into a page is
//! escaped, so a page cannot be made to say more than its author wrote.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use http::StatusCode;

use crate::record::Id;

/// Largest page. It is sent whole, to every client of an overload.
const LARGEST: u64 = 256 * 1024;

/// For every status that has no page of its own.
const ANY: &str = "error";

/// Pages by the names of their files: `503`, `5xx`, `error`. Empty if there are none.
#[derive(Debug, Clone, Default)]
pub struct Pages(Arc<BTreeMap<String, String>>);

impl Pages {
    /// Reads the pages of a folder.
    ///
    /// # Errors
    /// When it cannot be read, a page is no text or too large, or there is none.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let mut pages = BTreeMap::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let named = path.file_name().and_then(|name| name.to_str());
            let Some(name) = named.and_then(|name| name.strip_suffix(".html")) else {
                continue;
            };
            if is_name(name) {
                let page = read(&path).map_err(|error| {
                    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
                })?;
                pages.insert(name.to_owned(), page);
            }
        }
        if pages.is_empty() {
            let what = "no page in it: neither error.html nor one for a status, such as 503.html";
            return Err(io::Error::new(io::ErrorKind::NotFound, what));
        }
        Ok(Self(Arc::new(pages)))
    }

    /// The page for a status, filled in; None if there is none.
    pub fn page(&self, status: StatusCode, message: &str, id: &Id) -> Option<String> {
        let class = format!("{}xx", status.as_u16() / 100);
        let page = [status.as_str(), &class, ANY]
            .iter()
            .find_map(|name| self.0.get(*name))?;
        Some(filled(page, |name| match name {
            "status" => Some(status.as_str()),
            "reason" => Some(status.canonical_reason().unwrap_or_default()),
            "message" => Some(message),
            "request_id" => Some(id.as_str()),
            _ => None,
        }))
    }
}

/// `400` to `599`, `4xx`, `5xx`, `error`.
fn is_name(name: &str) -> bool {
    match name.as_bytes() {
        [b'4' | b'5', rest @ ..] => {
            rest == b"xx" || (rest.len() == 2 && rest.iter().all(u8::is_ascii_digit))
        }
        _ => name == ANY,
    }
}

fn read(path: &Path) -> io::Result<String> {
    if std::fs::metadata(path)?.len() > LARGEST {
        let what = format!("larger than {LARGEST} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    std::fs::read_to_string(path)
}

/// The page with `{name}` replaced wherever there is such a value. Other braces stay: styles are full of
/// them.
fn filled<'v>(page: &str, value: impl Fn(&str) -> Option<&'v str>) -> String {
    let mut filled = String::with_capacity(page.len() + 64);
    let mut rest = page;
    while let Some(start) = rest.find('{') {
        let (before, from) = rest.split_at(start);
        filled.push_str(before);
        let name = from[1..].split_once('}').map(|(name, _)| name);
        match name.and_then(|name| Some((name, value(name)?))) {
            Some((name, value)) => {
                escape(value, &mut filled);
                rest = &from[name.len() + 2..];
            }
            None => {
                filled.push('{');
                rest = &from[1..];
            }
        }
    }
    filled.push_str(rest);
    filled
}

fn escape(text: &str, out: &mut String) {
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            char => out.push(char),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("the folder is ours");
        }
        folder
    }

    #[test]
    fn the_page_for_the_fewest_statuses_is_shown() {
        let folder = folder(&[
            ("503.html", "busy"),
            ("5xx.html", "ours {status} {reason}"),
            ("error.html", "yours {message}"),
            ("50.html", "no page"),
            ("readme.txt", "no page"),
        ]);
        let pages = Pages::read(folder.path()).expect("pages");
        let id = Id::new();
        let page = |status: u16| {
            let status = StatusCode::from_u16(status).expect("a status");
            pages.page(status, "<b>", &id).expect("a page")
        };
        assert_eq!(page(503), "busy");
        assert_eq!(page(504), "ours 504 Gateway Timeout");
        assert_eq!(page(413), "yours &lt;b&gt;");
        let none = Pages::default();
        assert_eq!(none.page(StatusCode::BAD_GATEWAY, "", &id), None);
    }

    #[test]
    fn only_what_is_known_is_filled_in() {
        let value = |name: &str| (name == "a").then_some("\"'&");
        for (page, expected) in [
            ("{a}", "&quot;&#39;&amp;"),
            ("p{color:red}{b}{", "p{color:red}{b}{"),
            ("{{a}}", "{&quot;&#39;&amp;}"),
            ("{a", "{a"),
        ] {
            assert_eq!(filled(page, value), expected);
        }
    }

    #[test]
    fn a_folder_without_a_usable_page_is_refused() {
        assert!(Pages::read(folder(&[("index.html", "x")]).path()).is_err());
        assert!(Pages::read(Path::new("/nowhere")).is_err());
        let large = "x".repeat(LARGEST as usize + 1);
        assert!(Pages::read(folder(&[("500.html", &large)]).path()).is_err());
    }
}
