//! The ClientHello that a gateway reads and rustls reads after it: both see one name, or there is no connection.

use api::endpoint::ServerName;
use dataplane::passthrough::hello::{NotHello, Reading, read};
use rustls::server::Acceptor;

pub(crate) fn run(bytes: &[u8]) {
    let verdict = read(bytes);
    for end in 0..bytes.len().min(600) {
        match read(&bytes[..end]) {
            Ok(Reading::More) => {}
            // What is decided stays decided, whatever comes behind.
            decided => assert_eq!(decided, verdict, "after {end} of {} bytes", bytes.len()),
        }
    }
    let Ok(Reading::Hello(ours)) = verdict else {
        assert!(matches!(verdict, Ok(Reading::More) | Err(NotHello::NotTls | NotHello::Malformed)));
        return;
    };
    let Some(theirs) = by_rustls(bytes) else { return };
    match (&ours, &theirs) {
        (Some(ours), Some(theirs)) => assert_eq!(ours, theirs, "two readers, two names"),
        (None, Some(theirs)) => panic!("{theirs} is seen behind alone"),
        // rustls leaves out what is no DNS name; a name of the mesh always is one.
        (Some(ours), None) => {
            assert!(ServerName::parse(ours).is_none(), "{ours} is seen in front alone")
        }
        (None, None) => {}
    }
}

/// The name that rustls sees, in lower case; `None` where it takes the bytes for no ClientHello.
fn by_rustls(bytes: &[u8]) -> Option<Option<String>> {
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        acceptor.read_tls(&mut rest).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            return Some(accepted.client_hello().server_name().map(str::to_ascii_lowercase));
        }
    }
    None
}
