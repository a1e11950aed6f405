//! The Git repository that rules the mesh, made from the sample with one commit.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context, bail, ensure};
use api::{manifest, resource::Duration};

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
    ensure!(
        !fs::read_dir(repository).is_ok_and(|mut entries| entries.next().is_some()),
        "{} holds files, but is no Git repository: move it away, and one is made from the sample",
        repository.display()
    );
    // Made aside, since the next `weft up` would go on from one that was given up half way.
    let aside = repository.with_extension("new");
    if aside.exists() {
        fs::remove_dir_all(&aside).with_context(|| format!("cannot remove {}", aside.display()))?;
    }
    make(&aside, leaf, weft)?;
    fs::rename(&aside, repository).with_context(|| format!("cannot make {}", repository.display()))
}

/// One commit with the sample, and the hook.
fn make(repository: &Path, leaf: Option<&str>, weft: &Path) -> anyhow::Result<()> {
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

/// Reads a lifetime of leaves, and holds it against what else the sample's `Mesh` says, as the gate would.
pub(crate) fn leaf(text: &str) -> Result<String, String> {
    let leaf = text.parse::<Duration>().map_err(|error| error.to_string())?.to_string();
    let files: Vec<_> = SAMPLE.iter().map(|(name, text)| (*name, with_leaf(text, &leaf))).collect();
    match manifest::parse(&files).diagnostics.iter().find(|one| one.is_error()) {
        Some(wrong) => Err(format!("the Mesh would be refused: {}", wrong.message)),
        None => Ok(leaf),
    }
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
    if !output.status.success() {
        // Git is quiet of a name that it does not know, and says what else is wrong.
        let why = String::from_utf8_lossy(&output.stderr);
        let why = if why.is_empty() { String::new() } else { format!(": {}", why.trim()) };
        bail!("`{revision}` names no commit of {}{why}", repository.display());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The first commit on the main line to `commit`, which all clones have; in a shallow one the first that it has.
pub(crate) fn beginning(repository: &Path, commit: &str) -> Option<String> {
    let output = try_git(repository, &["rev-list", "--first-parent", "--max-parents=0", commit]).ok()?;
    let first = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !first.is_empty()).then_some(first)
}

/// Runs a command of git there, which has to succeed.
pub(crate) fn git(repository: &Path, args: &[&str]) -> anyhow::Result<()> {
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
    fn what_was_given_up_half_way_is_made_anew_and_a_stranger_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (repository, weft) = (dir.path().join("config"), Path::new("/nowhere/weft"));
        git(dir.path(), &["init", "--quiet", "config.new"]).unwrap();
        prepare(&repository, Some("6h"), weft).unwrap();
        assert!(resolve(&repository, "main").is_ok() && !dir.path().join("config.new").exists());
        assert!(fs::read_to_string(repository.join("mesh.yaml")).unwrap().contains("leaf: 6h\n"));

        let mine = dir.path().join("mine");
        fs::create_dir(&mine).unwrap();
        fs::write(mine.join("a.yaml"), "").unwrap();
        let error = prepare(&mine, None, weft).unwrap_err().to_string();
        assert!(error.contains("is no Git repository"), "{error}");
        assert_eq!(fs::read_dir(&mine).unwrap().count(), 1);
    }

    #[test]
    fn git_says_itself_why_it_reads_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".git"), "nonsense").unwrap();
        let error = resolve(dir.path(), "HEAD").unwrap_err().to_string();
        assert!(error.starts_with("`HEAD` names no commit of ") && error.contains("/.git"), "{error}");
    }

    #[test]
    fn a_leaf_lives_as_long_as_the_mesh_allows() {
        assert_eq!(leaf("5m"), Ok("5m".to_owned()));
        assert_eq!(leaf("90m"), Ok("1h30m".to_owned()));
        for bad in ["4m59s", "2160h", "1d", "300", "5m, root: 1h", ""] {
            assert!(leaf(bad).is_err(), "{bad}");
        }
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
