//! Paths: what is judged is what is forwarded, and reading it once more changes nothing.

use runtime::path::{PathMode, normalise};

pub(crate) fn run(bytes: &[u8]) {
    let Some((mode, path)) = bytes.split_first() else { return };
    let mode = [PathMode::Refuse, PathMode::Keep, PathMode::Decode][usize::from(mode % 3)];
    let Ok(path) = str::from_utf8(path) else { return };
    let _ = policies::query::decode(path);
    let Ok(normal) = normalise(path, mode) else { return };

    assert_eq!(normalise(&normal, mode).as_deref(), Ok(&*normal), "normal is normal");
    assert!(normal.starts_with('/') && normal.bytes().all(|byte| byte.is_ascii() && byte != 0));
    assert!(!normal.contains("//") && !normal.contains('\\'));
    let inner = normal[1..].split('/');
    for segment in inner {
        let meant = decoded(segment);
        assert!(!matches!(&*meant, b"." | b".."), "{normal:?} climbs");
        assert!(!meant.contains(&0), "{normal:?} holds NUL");
        if mode != PathMode::Keep {
            assert!(str::from_utf8(&meant).is_ok(), "{normal:?} is no UTF-8 once decoded");
            assert!(!meant.iter().any(|byte| matches!(byte, b'/' | b'\\')), "{normal:?} hides a separator");
        }
    }
    if mode == PathMode::Refuse {
        assert_eq!(reference(path), segments(&normal), "{path:?} means something else than {normal:?}");
    }
}

/// Where a path leads, by decoding first and walking then: what a careless reader behind would do.
fn reference(path: &str) -> Vec<Vec<u8>> {
    let mut kept = Vec::new();
    for segment in path.split('/').map(decoded) {
        match &*segment {
            b"" | b"." => {}
            b".." => drop(kept.pop()),
            _ => kept.push(segment),
        }
    }
    kept
}

fn segments(path: &str) -> Vec<Vec<u8>> {
    path.split('/').filter(|segment| !segment.is_empty()).map(decoded).collect()
}

fn decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let mut digit = || char::from(bytes.next().unwrap_or_default()).to_digit(16).unwrap_or_default();
        out.push(if byte == b'%' { (digit() << 4 | digit()) as u8 } else { byte });
    }
    out
}
