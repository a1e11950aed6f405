//! Logs of the mesh's processes, read from their files.

use std::{fs, path::Path};

use serde_json::Value;

/// One line of an access log.
#[derive(Debug, Clone)]
pub struct Line(pub Value);

impl Line {
    /// A field as text; numbers as they are written, `""` when it is absent or null.
    pub fn get(&self, field: &str) -> String {
        match &self.0[field] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }
    }
}

/// The whole lines of the access log in a proxy's state directory.
pub fn access(proxy: &Path) -> Vec<Line> {
    json_lines(&proxy.join("access.log")).into_iter().map(Line).collect()
}

/// What a process said, event by event.
pub fn events(process: &Path) -> Vec<Value> {
    json_lines(&process.join("output.log"))
}

/// A file that is being written: what is no whole JSON yet is left out.
fn json_lines(file: &Path) -> Vec<Value> {
    let text = fs::read(file).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
