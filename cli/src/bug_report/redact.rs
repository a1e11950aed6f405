//! What may be a secret is left out: by the name of the field, by what stands before it, and by how it looks. Rather too
//! much than too little; what mends faults (commits, digests, ids, addresses) is none of it.

use serde_json::Value;

const LEFT_OUT: &str = "(left out)";

/// Parts of names whose values are secrets.
const NAMES: [&str; 9] =
    ["token", "secret", "password", "passwd", "authorization", "cookie", "credential", "privatekey", "login"];

/// What stands before a secret to the end of its line or string.
const TO_THE_END: [&str; 3] = ["authorization", "cookie", "bearer "];

/// The shortest word that is judged by how it looks: 16 random bytes in base64 have 22 characters.
const RANDOM_CHARS: usize = 20;

/// Leaves the secrets out of a document.
pub(super) fn value(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.iter_mut().for_each(|(name, field)| match is_secret(name) {
            true => *field = LEFT_OUT.into(),
            false => self::value(field),
        }),
        Value::Array(items) => items.iter_mut().for_each(self::value),
        Value::String(said) => *said = text(said),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A field that names the file of a secret is none.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace(['-', '_'], "");
    NAMES.iter().any(|secret| name.contains(secret)) && !name.ends_with("file")
}

/// Leaves the secrets out of lines, of JSON or not.
pub(super) fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_pem = false;
    for line in text.split_inclusive('\n') {
        let (begins, ends) = (line.find("-----BEGIN"), line.contains("-----END"));
        match (in_pem, begins) {
            (true, _) => in_pem = !ends,
            (false, Some(at)) => {
                out += &words(&line[..at]);
                out += LEFT_OUT;
                out.push('\n');
                in_pem = !ends;
            }
            (false, None) => out += &words(line),
        }
    }
    out
}

/// One line, word by word.
fn words(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while !rest.is_empty() {
        let (word, after) = rest.split_at(rest.find(|char: char| !is_of_word(char)).unwrap_or(rest.len()));
        let (between, next) = after.split_at(after.find(is_of_word).unwrap_or(after.len()));
        rest = next;
        match () {
            // `user:password@` of a URL.
            () if between.starts_with("://") => {
                out += word;
                out += between;
                let authority = rest.find(['/', ' ', '"', '\n', '?']).unwrap_or(rest.len());
                if let Some(at) = rest[..authority].rfind('@') {
                    out += LEFT_OUT;
                    rest = &rest[at..];
                }
            }
            () if looks_random(word) || word.starts_with("weftw1") || word.starts_with("weftj1") => {
                // The parts of a token are joined by dots.
                let whole = rest.find([' ', '"', '\n', ',', '&']).unwrap_or(rest.len());
                let joined = between.starts_with('.');
                out += LEFT_OUT;
                if joined {
                    rest = &rest[whole..];
                } else {
                    out += between;
                }
            }
            () if is_secret(word) && between.trim_matches(['"', '\\', ' ']).starts_with([':', '=']) => {
                out += word;
                out += between;
                out += LEFT_OUT;
                let lower = word.to_ascii_lowercase();
                let long = TO_THE_END.iter().any(|name| lower.contains(name));
                let ends: &[char] = if long { &['"', '\n'] } else { &[' ', '"', '\n', ',', ';', '&', '}'] };
                rest = &rest[rest.find(ends).unwrap_or(rest.len())..];
            }
            () if word.eq_ignore_ascii_case("bearer") || word.eq_ignore_ascii_case("basic") => {
                out += word;
                out += between;
                if between == " " {
                    out += LEFT_OUT;
                    rest = &rest[rest.find([' ', '"', '\n']).unwrap_or(rest.len())..];
                }
            }
            () => {
                out += word;
                out += between;
            }
        }
    }
    out
}

/// The characters of base64, of both alphabets but for `/`, which joins paths.
fn is_of_word(char: char) -> bool {
    char.is_ascii_alphanumeric() || "_-+".contains(char)
}

/// Upper case, lower case and digits in one long word: nobody names anything so, and hexadecimal digests and ids in
/// base32 are of one case.
fn looks_random(word: &str) -> bool {
    word.len() >= RANDOM_CHARS
        && word.bytes().any(|byte| byte.is_ascii_uppercase())
        && word.bytes().any(|byte| byte.is_ascii_lowercase())
        && word.bytes().any(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_left_out_and_what_mends_faults_is_not() {
        for (said, left) in [
            ("authorization: Bearer abc, def", "authorization: (left out)"),
            (
                r#"{"authorization":"Basic YTpi","status":200}"#,
                r#"{"authorization":"(left out)","status":200}"#,
            ),
            ("Cookie: a=b; c=d\nnext", "Cookie: (left out)\nnext"),
            ("sent Bearer abc to 10.0.0.1", "sent Bearer (left out) to 10.0.0.1"),
            ("git https://ann:s3cret@git.example/a.git", "git https://(left out)@git.example/a.git"),
            ("http://127.1.0.1:15080/?login=_XO", "http://127.1.0.1:15080/?login=(left out)"),
            ("password=hunter2&user=ann", "password=(left out)&user=ann"),
            ("token weftw1.e30.bWFj is used", "token (left out) is used"),
            ("the word aB3dEfGhIjKlMnOpQrStUvWx here", "the word (left out) here"),
            ("x\n-----BEGIN PRIVATE KEY-----\nMIG\n-----END PRIVATE KEY-----\ny", "x\n(left out)\ny"),
            (r#"{"pem":"-----BEGIN A-----\nMIG\n-----END A-----","a":1}"#, "{\"pem\":\"(left out)\n"),
        ] {
            assert_eq!(text(said), left, "{said}");
        }
        for kept in [
            "commit f163235fb988ec136d4bb893be54c192b5261234 is effective on east-reviews-v1-1-011eaede",
            "spiffe://shop.example/ns/shop/sa/front at 127.1.0.11:15006",
            "the token file does not hold a workload's token",
            "abcdefghijklmnopqrstuvwxy2.ep.weft.internal",
            "http_server_request_duration_seconds_bucket{le=\"0.0005\"} 7",
        ] {
            assert_eq!(text(kept), kept);
        }
    }

    #[test]
    fn fields_are_judged_by_their_names() {
        let mut settings = serde_json::json!({
            "tokenFile": "/state/token", "webhook": { "secret": "short" }, "apps": [{ "api_token": ["a"] }], "port": 1
        });
        value(&mut settings);
        let left = serde_json::json!({
            "tokenFile": "/state/token", "webhook": { "secret": LEFT_OUT }, "apps": [{ "api_token": LEFT_OUT }], "port": 1
        });
        assert_eq!(settings, left);
    }
}
