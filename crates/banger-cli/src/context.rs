//! What every command has at hand.

use banger_config::{Config, ConfigError};
use banger_proto::{ErrorCode, ErrorReport};
use banger_sys::paths::Paths;

use crate::error::CliError;
use crate::session::Session;
use crate::ui::Ui;

/// Paths and terminal. Nothing in it asks the daemon for anything.
#[derive(Debug)]
pub(crate) struct Context {
    /// The terminal.
    pub(crate) ui: Ui,
    /// Where everything of this user is.
    pub(crate) paths: Paths,
}

impl Context {
    /// For the calling user.
    pub(crate) fn new(ui: Ui) -> Result<Self, CliError> {
        let paths = Paths::for_user().map_err(|error| {
            let report = ErrorReport::caused_by(
                ErrorCode::InvalidInput,
                "cannot tell where banger's files are",
                &error,
            );
            CliError::from(report.hint("set BANGER_RUNTIME_DIR to a short absolute path, or HOME"))
        })?;
        Ok(Self { ui, paths })
    }

    /// The configuration.
    pub(crate) fn config(&self) -> Result<Config, CliError> {
        Config::load(&self.paths.config).map_err(|error| config_error(&error))
    }

    /// The daemon, started where none runs.
    pub(crate) async fn session(&self) -> Result<Session<'_>, CliError> {
        Session::open(&self.paths, self.ui).await
    }
}

/// A configuration that cannot be used: each problem on a line of its own.
pub(crate) fn config_error(error: &ConfigError) -> CliError {
    match error {
        ConfigError::Invalid { path, problems } => {
            let mut report = ErrorReport::new(ErrorCode::InvalidInput, "the configuration is not usable");
            for problem in problems {
                report = report.cause(format!("{}:{}: {}", path.display(), problem.line, problem.message));
            }
            report.hint("every key is described in docs/config.md; check again: banger config check").into()
        }
        ConfigError::Read { .. } | ConfigError::Host(_) => {
            let report =
                ErrorReport::caused_by(ErrorCode::InvalidInput, "the configuration is not usable", error);
            report.hint("where it is looked for: banger config path").into()
        }
    }
}
