//! The tokens that a configuration names: the first one, and replicas that have the same keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{HsmConfig, ModuleArguments};

/// `[[hsm.replicas]]`: another token, of the same module or another one, that holds the same `kek`, `row` and `data`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaConfig {
    /// As `hsm.module`.
    pub module: PathBuf,
    /// As `hsm.module_arguments`; the first token's are not inherited.
    #[serde(default)]
    pub module_arguments: ModuleArguments,
    /// As `hsm.token_label`.
    pub token_label: String,
    /// As `hsm.pin_file`.
    pub pin_file: PathBuf,
    /// As `hsm.custodians`; by default as many as the first token has.
    pub custodians: Option<u16>,
    /// As `hsm.environment`; the first token's is not inherited.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// As `hsm.folders`; the first token's are not inherited.
    #[serde(default)]
    pub folders: Vec<PathBuf>,
    /// As `hsm.network`; the first token's is not inherited.
    #[serde(default)]
    pub network: bool,
}

impl HsmConfig {
    /// The first token, and then each replica, in the order of the file: each as a configuration that names no other.
    /// Whatever loads a module is started with one of these.
    pub fn tokens(&self) -> Vec<HsmConfig> {
        let first = HsmConfig { replicas: Vec::new(), ..self.clone() };
        let replica = |replica: &ReplicaConfig| HsmConfig {
            module: replica.module.clone(),
            module_arguments: replica.module_arguments.clone(),
            token_label: replica.token_label.clone(),
            pin_file: replica.pin_file.clone(),
            custodians: replica.custodians.unwrap_or(self.custodians),
            environment: replica.environment.clone(),
            folders: replica.folders.clone(),
            network: replica.network,
            ..first.clone()
        };
        std::iter::once(first.clone()).chain(self.replicas.iter().map(replica)).collect()
    }

    /// What an operator calls each token, in the same order: its label; where another token has the same one, with its
    /// place.
    pub fn token_names(&self) -> Vec<String> {
        let labels: Vec<_> = self.tokens().into_iter().map(|token| token.token_label).collect();
        let is_shared = |label: &String| labels.iter().filter(|other| *other == label).count() > 1;
        let name = |(place, label): (usize, &String)| match is_shared(label) {
            true => format!("{label} ({})", place.saturating_add(1)),
            false => label.clone(),
        };
        labels.iter().enumerate().map(name).collect()
    }

    /// Every PIN file, in the same order.
    pub fn pin_files(&self) -> impl Iterator<Item = &Path> {
        let replicas = self.replicas.iter().map(|replica| replica.pin_file.as_path());
        std::iter::once(self.pin_file.as_path()).chain(replicas)
    }

    /// # Errors
    /// One line that says what to mend.
    pub(super) fn validate_tokens(&self) -> Result<(), String> {
        for (place, token) in self.tokens().iter().enumerate() {
            let section = if place == 0 { "hsm" } else { "hsm.replicas" };
            if !token.module.is_absolute() {
                return Err(format!(
                    "{section}.module must be an absolute path: a module is code that is loaded"
                ));
            }
            if let Some(relative) = token.folders.iter().find(|path| !path.is_absolute()) {
                return Err(format!("{section}.folders must be absolute paths: {}", relative.display()));
            }
            if token.token_label.is_empty() || token.token_label.len() > 32 {
                return Err(format!("{section}.token_label must have 1 to 32 bytes"));
            }
            if !(1..=64).contains(&token.custodians) {
                return Err(format!("{section}.custodians must be 1 to 64"));
            }
        }
        if !self.replicas.is_empty() && !self.shared_keys {
            return Err(
                "hsm.replicas needs hsm.shared_keys = true: keys of several tokens have been outside one"
                    .into(),
            );
        }
        if self.replicas.len() > 15 {
            return Err("hsm.replicas: at most 15".into());
        }
        let tokens = self.tokens();
        let place = |token: &HsmConfig| {
            let HsmConfig { module, module_arguments, token_label, environment, .. } = token.clone();
            (module, module_arguments, token_label, environment)
        };
        for (index, token) in tokens.iter().enumerate() {
            if tokens.iter().skip(index + 1).any(|other| place(other) == place(token)) {
                return Err(format!(
                    "hsm.replicas: token {} is named twice: module, module_arguments, token_label or environment must \
                     differ",
                    token.token_label
                ));
            }
        }
        Ok(())
    }
}
