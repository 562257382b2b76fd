//! `banger image`

use std::path::PathBuf;

use banger_proto::catalog::{IMAGES, ImageRecipe};
use banger_proto::daemon::{Accepted, ImageInfo, ImageList, JobResult, Request};
use banger_proto::{ErrorCode, ErrorReport, ImageName};
use clap::{Args, Subcommand, ValueHint};

use super::content;
use crate::build;
use crate::context::Context;
use crate::doc::{self, document};
use crate::error::CliError;
use crate::jobs::unexpected;
use crate::names;
use crate::progress::{Lines, Progress};
use crate::signals::Interrupts;

/// Build, register and list the images that VMs are made from
///
/// An image is one ext4 file, addressed by its digest; VMs never change it. 'vm run' builds the default one by
/// itself when it is missing.
#[derive(Debug, Subcommand)]
#[command(
    after_long_help = "Examples:\n  banger image build debian-bookworm\n  banger image register mine ./root.ext4"
)]
pub(crate) enum Verb {
    Build(Build),
    Register(Register),
    #[command(visible_alias = "ls")]
    List(List),
    Show(Show),
    #[command(visible_alias = "rm")]
    Delete(Delete),
}

/// Build an image from Debian's signed archive
///
/// mmdebstrap runs as you, in this very process tree; the daemon gets its archive and makes a file system of it.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    banger image build debian-bookworm\n  \
    banger image build debian-bookworm-minimal --name tiny")]
pub(crate) struct Build {
    /// Name in the catalog: debian-bookworm or debian-bookworm-minimal
    #[arg(add = names::recipes())]
    recipe: String,
    /// Name of the image, if not the recipe's own
    #[arg(long)]
    name: Option<ImageName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Take a local ext4 file as an image
///
/// The file is copied into the store and may be deleted after. Ctrl-C cancels it. With -d it goes on in the daemon:
/// 'banger job' follows and cancels it.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  banger image register mine ./root.ext4\n  banger image register -d other ./root.ext4"
)]
pub(crate) struct Register {
    /// Name of the image
    name: ImageName,
    /// The ext4 file
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Leave it to the daemon, and print the id of the job
    #[arg(short, long, conflicts_with = "json")]
    detach: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// List images
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger image list\n  banger image ls --json")]
pub(crate) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Show one image
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger image show debian-bookworm")]
pub(crate) struct Show {
    /// Its name
    #[arg(add = names::images())]
    image: ImageName,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Delete images that no VM uses
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  banger image delete debian-bookworm")]
pub(crate) struct Delete {
    /// Their names
    #[arg(required = true, add = names::images())]
    images: Vec<ImageName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Verb {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self {
            Self::Build(build) => build.run(context).await,
            Self::Register(register) => register.run(context).await,
            Self::List(list) => list.run(context).await,
            Self::Show(show) => show.run(context).await,
            Self::Delete(delete) => delete.run(context).await,
        }
    }
}

impl Build {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        let Some(recipe) = ImageRecipe::find(&self.recipe) else {
            let known: Vec<&str> = IMAGES.iter().map(|recipe| recipe.name).collect();
            let text = format!("there is no recipe '{}' in the catalog", self.recipe);
            let hint = format!("what can be built: {}", known.join(", "));
            return Err(ErrorReport::new(ErrorCode::NotFound, text).hint(hint).into());
        };
        let name = match self.name {
            Some(name) => name,
            None => recipe.name.parse().map_err(|error: banger_proto::name::BadName| {
                CliError::caused_by(ErrorCode::Internal, "the catalog has a bad name", &error)
            })?,
        };
        let mut interrupts = Interrupts::new()?;
        let mut session = context.session().await?;
        let image = build::image(context, &mut session, recipe, &name, &mut interrupts).await?;
        print(context, &image, self.json)
    }
}

impl Register {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        let path = self.file.display();
        let unusable = |error: std::io::Error| {
            let report =
                ErrorReport::caused_by(ErrorCode::InvalidInput, format!("cannot register {path}"), &error);
            CliError::from(report.hint("give the path of an ext4 file: banger image register NAME FILE"))
        };
        let file = std::fs::File::open(&self.file).map_err(unusable)?;
        if !file.metadata().map_err(unusable)?.is_file() {
            return Err(unusable(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "it is not a regular file",
            )));
        }
        let source = std::fs::canonicalize(&self.file).unwrap_or_else(|_| self.file.clone());
        let source = format!("the file {}", source.display());
        let mut interrupts = Interrupts::new()?;
        let mut session = context.session().await?;
        let mut progress = Progress::new(context.ui, Lines::Stages, format!("image {}", self.name));
        let request = Request::ImageRegister { name: self.name, source };
        if self.detach {
            let accepted: Accepted = session.client.call_with(request, vec![file.into()]).await?;
            context.ui.line(accepted.job)?;
            return Ok(0);
        }
        match session.job(request, vec![file.into()], &mut progress, &mut interrupts).await? {
            JobResult::Image { image } => print(context, &image, self.json),
            other => Err(unexpected(&other)),
        }
    }
}

impl List {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        let ui = context.ui;
        let mut session = context.session().await?;
        let list: ImageList = session.ask(Request::ImageList {}).await?;
        let missing = || {
            IMAGES.iter().filter(|recipe| !list.images.iter().any(|image| image.name.as_str() == recipe.name))
        };
        if self.json {
            let buildable =
                missing().map(|recipe| (recipe.name.to_owned(), recipe.description.to_owned())).collect();
            let images = list.images.iter().map(doc::Image::from).collect();
            ui.json(&document(doc::Images { images, buildable }))?;
            return Ok(0);
        }
        let rows = list
            .images
            .iter()
            .map(|image| {
                vec![
                    image.name.to_string(),
                    image.digest.short().to_owned(),
                    image.size.to_string(),
                    image.disk_used.to_string(),
                    doc::ago(image.created_at),
                    image.source.clone(),
                ]
            })
            .collect();
        ui.table(&["NAME", "DIGEST", "SIZE", "DISK", "AGE", "SOURCE"], &[2, 3], rows)?;
        if ui.is_interactive() {
            for recipe in missing() {
                ui.hint(format!("banger image build {}  ({})", recipe.name, recipe.description));
            }
        }
        Ok(0)
    }
}

impl Show {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        let mut session = context.session().await?;
        let image: ImageInfo = session.ask(Request::ImageShow { image: self.image }).await?;
        print(context, &image, self.json)
    }
}

impl Delete {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        content::delete(context, self.images, |image| Request::ImageDelete { image }, self.json).await
    }
}

fn print(context: &Context, image: &ImageInfo, json: bool) -> Result<u8, CliError> {
    if json {
        context.ui.json(&document(doc::OneImage { image: image.into() }))?;
        return Ok(0);
    }
    let rows = [
        ("name", image.name.to_string()),
        ("digest", image.digest.to_string()),
        ("size", image.size.to_string()),
        ("disk used", image.disk_used.to_string()),
        ("source", image.source.clone()),
        ("made", doc::when(image.created_at)),
        ("used by", content::used_by(&image.used_by)),
    ];
    super::vm::fields(context.ui, &rows)?;
    Ok(0)
}
