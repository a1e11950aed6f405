//! The Git repository that rules the mesh, made from the sample with one commit.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context, bail, ensure};

/// `policies/examples/shop`: path and text of each file.
const SAMPLE: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/sample.rs"));
const HOOK_MARK: &str = "# Made by `weft up`";

/// Makes the repository if there is none; `leaf` is the lifetime of the leaves that its `Mesh` then asks for.
pub(crate) fn prepare(repository: &Path, leaf: Option<&str>, weft: &Path) -> anyhow::Result<()> {
    if repository.join(".git").exists() {
        ensure!(
            leaf.is_none(),
            "--leaf is for a new repository; in {} commit Mesh.spec.certificates.leaf instead",
            repository.display()
        );
        return install_hook(repository, weft);
    }
    for (name, text) in SAMPLE {
        let path = repository.join(name);
        fs::create_dir_all(path.parent().unwrap_or(repository))?;
        let text = leaf.map_or_else(|| text.to_string(), |leaf| with_leaf(text, leaf));
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    git(repository, &["init", "--quiet", "--initial-branch=main"])?;
    if try_git(repository, &["config", "user.email"])?.stdout.is_empty() {
        git(repository, &["config", "user.name", "Weft"])?;
        git(repository, &["config", "user.email", "weft@localhost"])?;
    }
    git(repository, &["add", "--all"])?;
    git(
        repository,
        &["-c", "commit.gpgsign=false", "commit", "--quiet", "--no-verify", "-m", "The shop, as it comes"],
    )?;
    install_hook(repository, weft)
}

/// The sample's `Mesh` with another lifetime of leaves.
fn with_leaf(text: &str, leaf: &str) -> String {
    if !text.lines().any(|line| line == "kind: Mesh") {
        return text.to_owned();
    }
    let mut out = String::new();
    let said = text.contains("leaf:");
    for line in text.lines() {
        match line.split_once("leaf:") {
            Some((before, after)) => {
                let rest =
                    after.trim_start().find([',', ' ', '}']).map_or("", |end| &after.trim_start()[end..]);
                out.push_str(&format!("{before}leaf: {leaf}{rest}\n"));
            }
            None => {
                out.push_str(line);
                out.push('\n');
                if !said && line.starts_with("  trustDomain:") {
                    out.push_str(&format!("  certificates: {{ leaf: {leaf} }}\n"));
                }
            }
        }
    }
    out
}

/// Each commit is checked as it will be, from the index. It warns by default: the control plane has the last
/// word, and shows what it refused; `git config weft.refuse true` makes the hook refuse too.
fn install_hook(repository: &Path, weft: &Path) -> anyhow::Result<()> {
    let path = repository.join(".git/hooks/pre-commit");
    match fs::read_to_string(&path) {
        Ok(text) if !text.contains(HOOK_MARK) => return Ok(()), // someone's own
        _ => {}
    }
    let hook = format!(
        "#!/bin/sh\n\
         {HOOK_MARK}: the control plane's own gate, before the commit. It warns;\n\
         # `git config weft.refuse true` makes it refuse.\n\
         weft='{}'\n\
         [ -x \"$weft\" ] || exit 0\n\
         staged=$(mktemp -d) || exit 0\n\
         trap 'rm -rf \"$staged\"' EXIT\n\
         git checkout-index --all --prefix=\"$staged/\" || exit 0\n\
         \"$weft\" check \"$staged\" >/dev/null && exit 0\n\
         [ \"$(git config --bool weft.refuse)\" = true ] && exit 1\n\
         echo 'weft: the control plane will refuse this commit, and keep to the last good one' >&2\n\
         exit 0\n",
        weft.display().to_string().replace('\'', r"'\''")
    );
    fs::create_dir_all(repository.join(".git/hooks"))?;
    fs::write(&path, hook)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The full id of the commit that `revision` names in `repository`.
pub(crate) fn resolve(repository: &Path, revision: &str) -> anyhow::Result<String> {
    let output =
        try_git(repository, &["rev-parse", "--verify", "--quiet", &format!("{revision}^{{commit}}")])?;
    ensure!(output.status.success(), "`{revision}` names no commit of {}", repository.display());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn git(repository: &Path, args: &[&str]) -> anyhow::Result<()> {
    let output = try_git(repository, args)?;
    if !output.status.success() {
        bail!("git {} failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Runs git there, whatever repository the environment speaks of (a hook's does).
fn try_git(repository: &Path, args: &[&str]) -> anyhow::Result<Output> {
    Command::new("git")
        .arg("-C")
        .arg(repository)
        .args(args)
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .env_remove("GIT_INDEX_FILE")
        .output()
        .context("cannot run git: is it installed?")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn the_sample_becomes_one_commit_and_is_kept_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let repository = dir.path().join("config");
        let weft = Path::new("/nowhere/weft");
        prepare(&repository, None, weft).unwrap();
        let first = resolve(&repository, "HEAD").unwrap();
        assert_eq!(first.len(), 40);
        prepare(&repository, None, weft).unwrap();
        assert_eq!(resolve(&repository, "main").unwrap(), first);
        assert!(prepare(&repository, Some("5m"), weft).is_err());
        let error = resolve(&repository, "nothing").unwrap_err().to_string();
        assert!(error.starts_with("`nothing` names no commit"), "{error}");
        let status = try_git(&repository, &["status", "--porcelain"]).unwrap();
        assert!(status.stdout.is_empty());
    }

    #[test]
    fn someone_elses_hook_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path(), None, Path::new("/nowhere/weft")).unwrap();
        let hook = dir.path().join(".git/hooks/pre-commit");
        assert!(fs::read_to_string(&hook).unwrap().contains("weft='/nowhere/weft'"));
        fs::write(&hook, "#!/bin/sh\n").unwrap();
        prepare(dir.path(), None, Path::new("/elsewhere/weft")).unwrap();
        assert_eq!(fs::read_to_string(&hook).unwrap(), "#!/bin/sh\n");
    }

    #[test]
    fn the_leaf_is_set_in_the_mesh_alone() {
        expect![[r#"
            kind: Mesh
            spec:
              trustDomain: shop.example
              certificates: { leaf: 5m }
        "#]]
        .assert_eq(&with_leaf("kind: Mesh\nspec:\n  trustDomain: shop.example\n", "5m"));
        expect![[r#"
            kind: Mesh
            spec:
              certificates: { leaf: 5m, root: 87600h }
        "#]]
        .assert_eq(&with_leaf("kind: Mesh\nspec:\n  certificates: { leaf: 24h, root: 87600h }\n", "5m"));
        assert_eq!(with_leaf("kind: Service\n", "5m"), "kind: Service\n");
    }
}
