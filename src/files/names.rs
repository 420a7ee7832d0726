//! What the name of a file tells of it: its type, and whether its content can ever change.

use std::path::Path;

use http::HeaderValue;

/// Digits of the hash that Django's `ManifestStaticFilesStorage` puts into names.
const DJANGO: usize = 12;

/// Bundlers write at least so many.
const BUNDLER: std::ops::RangeInclusive<usize> = 16..=64;

/// By the ending. Text is taken to be UTF-8, as everything has been for years.
pub fn content_type(name: &Path) -> HeaderValue {
    let guess = mime_guess::from_path(name).first_raw();
    let media = match guess {
        // Of modules; RFC 9239 has one type for all scripts.
        Some("application/javascript") => "text/javascript",
        Some(media) => media,
        None => "application/octet-stream",
    };
    if !media.starts_with("text/") {
        return HeaderValue::from_static(media);
    }
    HeaderValue::from_str(&format!("{media}; charset=utf-8")).expect("a media type is a value")
}

/// Whether the name has a hash of the content in it, as `base.4f5a2e1b3c9d.css` has.
///
/// Hexadecimal digits between dots or hyphens, before the ending: exactly as many as Django's, or as
/// many as bundlers write.
pub fn is_hashed(name: &Path) -> bool {
    let Some(name) = name.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    let mut parts = name.split(['.', '-']).rev();
    // In `app.3c9d….js.map` the ending is in two parts.
    let (ending, before) = (parts.next(), parts.next());
    let part = match (ending, before) {
        (Some("map"), Some("js" | "css" | "mjs")) => parts.next(),
        (_, before) => before,
    };
    let Some(part) = part else {
        return false;
    };
    let digits = part
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    // Without a letter it may be a date; the few hashes without one are not kept, that is all.
    let hash = digits && !part.bytes().all(|byte| byte.is_ascii_digit());
    hash && (part.len() == DJANGO || BUNDLER.contains(&part.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_go_by_the_ending() {
        for (name, expected) in [
            ("a.css", "text/css; charset=utf-8"),
            ("a.JS", "text/javascript; charset=utf-8"),
            ("a.mjs", "text/javascript; charset=utf-8"),
            ("a.html", "text/html; charset=utf-8"),
            ("a.txt", "text/plain; charset=utf-8"),
            ("a.json", "application/json"),
            ("a.svg", "image/svg+xml"),
            ("a.png", "image/png"),
            ("a.webp", "image/webp"),
            ("a.avif", "image/avif"),
            ("a.woff2", "font/woff2"),
            ("a.wasm", "application/wasm"),
            ("a.webmanifest", "application/manifest+json"),
            ("a.pdf", "application/pdf"),
            ("a.mp4", "video/mp4"),
            ("a.unknown", "application/octet-stream"),
            ("README", "application/octet-stream"),
        ] {
            assert_eq!(content_type(Path::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn hashes_are_told_from_words_and_dates() {
        for (name, hashed) in [
            ("base.4f5a2e1b3c9d.css", true),
            ("admin/css/base.4f5a2e1b3c9d.css", true),
            ("jquery.min.4f5a2e1b3c9d.js", true),
            ("4f5a2e1b3c9d.css", true),
            ("app.4f5a2e1b3c9d.js.map", true),
            ("main-4f5a2e1b3c9d8e7f6a5b.js", true),
            ("LICENSE.4f5a2e1b3c9d", false),
            ("base.css", false),
            ("base.4F5A2E1B3C9D.css", false),
            ("base.4f5a2e1b3c9.css", false),
            ("base.4f5a2e1b3c9d0.css", false),
            ("report-202401311234.pdf", false),
            ("report-2024013112345678.pdf", false),
            ("4f5a2e1b3c9d/base.css", false),
            ("jquery-3.7.1.min.js", false),
            ("", false),
        ] {
            assert_eq!(is_hashed(Path::new(name)), hashed, "{name}");
        }
    }
}
