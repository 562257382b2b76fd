//! What images and kernels have in common: they are deleted by name, several at once, and VMs use them.

use std::fmt::Display;

use banger_proto::VmName;
use banger_proto::daemon::{Empty, Request};

use crate::context::Context;
use crate::doc::{self, document};
use crate::error::CliError;

/// Deletes each; one that fails does not keep the others from being deleted.
pub(super) async fn delete<N: Display>(
    context: &Context,
    names: Vec<N>,
    request: impl Fn(N) -> Request,
    json: bool,
) -> Result<u8, CliError> {
    let mut session = context.session().await?;
    let mut deleted = Vec::new();
    let mut code = 0;
    for name in names {
        let shown = name.to_string();
        match session.client.call::<Empty>(request(name)).await {
            Ok(Empty {}) => deleted.push(shown),
            Err(error) => {
                context.ui.error(&error.into());
                code = 1;
            }
        }
    }
    if json {
        context.ui.json(&document(doc::Deleted { deleted }))?;
    } else {
        deleted.iter().try_for_each(|name| context.ui.line(name))?;
    }
    Ok(code)
}

/// The VMs that use it, for people.
pub(super) fn used_by(vms: &[VmName]) -> String {
    let names: Vec<&str> = vms.iter().map(VmName::as_str).collect();
    if names.is_empty() { "no VM".to_owned() } else { names.join(", ") }
}
