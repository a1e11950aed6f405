//! Which mesh a command speaks of: `--api`, then `WEFT_API`, then the nearest `weft up` directory.

mod local;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use api::name::ClusterName;

use crate::{
    Global,
    client::Client,
    descriptor::{self, Descriptor},
};

/// Where `weft up` puts its directory when not told.
const DEFAULT_DIR: &str = "weft-up";
/// The file in a control plane's state directory that holds its API's token.
pub(crate) const ADMIN_TOKEN: &str = "admin.token";

/// The mesh that a command speaks of.
pub(crate) struct Mesh {
    /// The `weft up` directory, when the mesh is one of this machine.
    pub(crate) up: Option<Up>,
    /// What `--api` or `WEFT_API` said; then there is no `up`.
    url: Option<String>,
    /// What `--token-file` or `WEFT_TOKEN` said.
    token: Option<String>,
}

/// A `weft up` directory and what it holds.
pub(crate) struct Up {
    pub(crate) dir: PathBuf,
    pub(crate) descriptor: Descriptor,
}

impl Up {
    /// The token of `cluster`'s admin API.
    fn token(&self, cluster: &ClusterName) -> anyhow::Result<String> {
        read_token(&descriptor::controlplane_dir(&self.dir, cluster).join(ADMIN_TOKEN))
    }
}

impl Mesh {
    /// Finds it. A named API is asked whatever lies around: the directory one stands in may be another mesh's.
    pub(crate) fn find(global: &Global) -> anyhow::Result<Self> {
        let token = match (&global.token_file, env::var("WEFT_TOKEN")) {
            (Some(file), _) => Some(read_token(file)?),
            (None, Ok(token)) if !token.is_empty() => Some(token),
            _ => None,
        };
        match global.api.clone().filter(|url| !url.is_empty()) {
            Some(url) => Ok(Mesh { up: None, url: Some(url), token }),
            None => Mesh::around(&env::current_dir().context("the current directory is gone")?, token),
        }
    }

    /// That of the `weft up` directory nearest to `from`.
    fn around(from: &Path, token: Option<String>) -> anyhow::Result<Self> {
        let dir = nearest(from)
            .context("no mesh found: name its API with --api or WEFT_API, or go to a `weft up` directory")?;
        Ok(Mesh { up: Some(Up { descriptor: Descriptor::read(&dir)?, dir }), url: None, token })
    }

    /// That of a `weft up` directory.
    #[cfg(test)]
    pub(crate) fn of(dir: PathBuf, descriptor: Descriptor) -> Self {
        Mesh { up: Some(Up { dir, descriptor }), url: None, token: None }
    }

    /// The admin API of `cluster`; when none is named, the primary's. Of `--api` only that one is known, which has to be
    /// that cluster's.
    pub(crate) fn client(&self, cluster: Option<&ClusterName>) -> anyhow::Result<Client> {
        let Some(up) = &self.up else {
            let url = self.url.as_deref().unwrap_or_default();
            let token = self.token.clone().or_else(|| local::token(url));
            return Ok(Client::new(url, token)?.meant_for(cluster));
        };
        let cluster = match cluster {
            Some(name) => up.descriptor.cluster(name)?,
            None => up.descriptor.primary().context("up.json names no primary cluster")?,
        };
        let token = self.token.clone().map_or_else(|| up.token(&cluster.name), Ok)?;
        Ok(Client::new(&cluster.api, Some(token))?)
    }

    /// The `weft up` directory, for what can only be done on its machine.
    pub(crate) fn up(&self) -> anyhow::Result<&Up> {
        self.up.as_ref().context(
            "this is done on the machine of the `weft up`: go to its directory, and name no --api or WEFT_API",
        )
    }
}

/// The nearest `weft up` directory at or above `from`, or the one of the default name in one of these.
fn nearest(from: &Path) -> Option<PathBuf> {
    from.ancestors()
        .flat_map(|dir| [dir.to_owned(), dir.join(DEFAULT_DIR)])
        .find(|dir| dir.join(descriptor::FILE).is_file())
}

/// The directory of a `weft up`: as named, or the one that the current directory lies in, or `./weft-up`.
pub(crate) fn directory(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(dir) = named {
        return Ok(dir);
    }
    let here = env::current_dir().context("the current directory is gone")?;
    let around = here.ancestors().find(|dir| dir.join(descriptor::FILE).is_file());
    let dir = around.map_or_else(|| here.join(DEFAULT_DIR), PathBuf::from);
    descriptor::ensure_trusted(&dir)?;
    Ok(dir)
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    let token = fs::read_to_string(path)
        .with_context(|| format!("cannot read the admin API's token in {}", path.display()))?;
    Ok(token.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up_directory() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join(DEFAULT_DIR);
        fs::create_dir_all(dir.join("config/shop")).unwrap();
        descriptor::tests::sample().write(&dir).unwrap();
        let secret = dir.join("east/controlplane").join(ADMIN_TOKEN);
        crate::process::write_private(&secret, "secret\n").unwrap();
        (root, dir)
    }

    #[test]
    fn the_nearest_directory_is_found_from_inside_and_from_beside() {
        let (root, dir) = up_directory();
        assert_eq!(nearest(&dir.join("config/shop")), Some(dir.clone()));
        assert_eq!(nearest(&dir), Some(dir.clone()));
        assert_eq!(nearest(root.path()), Some(dir));
        let elsewhere = tempfile::tempdir().unwrap();
        assert_eq!(nearest(elsewhere.path()), None);
    }

    #[test]
    fn a_named_api_counts_for_more_than_the_directory() {
        let named = Global { api: Some("http://10.0.0.1:15080".into()), ..Global::default() };
        let mesh = Mesh::find(&named).unwrap();
        assert!(mesh.up.is_none());
        assert_eq!(mesh.client(None).unwrap().address(), "10.0.0.1:15080");
        assert!(mesh.up().err().unwrap().to_string().contains("--api"));

        let (_root, dir) = up_directory();
        let mesh = Mesh::around(&dir.join("config"), None).unwrap();
        assert_eq!(mesh.client(None).unwrap().address(), "127.1.0.1:15080");
        assert!(mesh.client(Some(&"west".parse().unwrap())).is_err());
    }

    #[test]
    fn no_mesh_is_said_with_what_to_do() {
        let elsewhere = tempfile::tempdir().unwrap();
        let error = Mesh::around(elsewhere.path(), None).err().unwrap().to_string();
        assert!(error.contains("--api"), "{error}");
    }

    #[test]
    fn a_broken_directory_is_said_to_be_so() {
        let (_root, dir) = up_directory();
        fs::write(dir.join(descriptor::FILE), "{").unwrap();
        let error = Mesh::around(&dir, None).err().unwrap().to_string();
        assert!(error.contains("was not written by this version of weft"), "{error}");
    }
}
