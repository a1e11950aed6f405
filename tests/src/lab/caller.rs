//! What somebody on a host is answered, and what the sidecar beside it knows.

use std::time::Duration;

use super::Host;
use crate::harness::{Client, client::request, eventually};

/// What is on its way in a mesh at rest arrives by then.
pub const SOON: Duration = Duration::from_secs(20);

impl Host {
    /// Who answers a `GET` that is sent to `address`; anything but 200 is an error.
    pub async fn get(&self, address: &str, uri: &str) -> Result<String, String> {
        let (address, uri) = (address.to_owned(), uri.to_owned());
        self.run(move || async move {
            let answer = Client::new(&address).send(request("GET", &uri, &[]), true).await?;
            let said = String::from_utf8_lossy(&answer.body).into_owned();
            if answer.status == 200 { Ok(said) } else { Err(format!("{}: {said}", answer.status)) }
        })
        .await
    }

    /// The same through its own sidecar, which is asked as an HTTP proxy.
    pub async fn call(&self, uri: &str) -> Result<String, String> {
        self.get(&format!("{}:15001", self.addresses.v4), uri).await
    }

    /// Waits until its sidecar has heard of a workload, as its admin port tells.
    pub async fn knows(&self, workload: &str) {
        let admin = format!("{}:15000", self.addresses.v4);
        eventually(&format!("{workload} is known"), SOON, async || {
            let told = self.get(&admin, "/runtime").await?;
            if told.contains(workload) { Ok(()) } else { Err(told) }
        })
        .await;
    }
}

/// Waits until this one answers.
pub async fn answers(who: &str, ask: impl AsyncFn() -> Result<String, String>) {
    eventually(&format!("{who} answers"), SOON, async || match ask().await {
        Ok(name) if name == who => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}
