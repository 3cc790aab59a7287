//! Arguments as a program writes them, and the check of a call before anything is sent.

use common::method::{ArgumentError, Catalogue, InvalidMethod, MethodName};
use common::protocol::Arguments;
use serde_json::Value;

/// What can be given as a method's arguments.
///
/// Words are what a command line gives: `VALUE` or `KEY=VALUE`, made into the types that the method wants. A JSON value, a list
/// or an object, is passed as it is.
///
/// ```
/// use overlord::IntoArguments;
/// let words = ["23", "45"].into_arguments();
/// let typed = serde_json::json!({ "a": 23, "b": 45 }).into_arguments();
/// # let _ = (words, typed, ().into_arguments());
/// ```
pub trait IntoArguments {
    /// The arguments.
    fn into_arguments(self) -> Arguments;
}

impl IntoArguments for Arguments {
    fn into_arguments(self) -> Arguments {
        self
    }
}

impl IntoArguments for () {
    fn into_arguments(self) -> Arguments {
        Arguments::default()
    }
}

impl IntoArguments for Value {
    fn into_arguments(self) -> Arguments {
        Arguments::Json(self)
    }
}

impl IntoArguments for &str {
    fn into_arguments(self) -> Arguments {
        Arguments::Words(vec![self.to_owned()])
    }
}

impl IntoArguments for Vec<String> {
    fn into_arguments(self) -> Arguments {
        Arguments::Words(self)
    }
}

impl IntoArguments for &[&str] {
    fn into_arguments(self) -> Arguments {
        Arguments::Words(self.iter().map(|word| (*word).to_owned()).collect())
    }
}

impl<const COUNT: usize> IntoArguments for [&str; COUNT] {
    fn into_arguments(self) -> Arguments {
        self.as_slice().into_arguments()
    }
}

/// Why a call is not even sent.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// It is no method's name.
    #[error(transparent)]
    Method(#[from] InvalidMethod),
    /// The arguments do not fit.
    #[error(transparent)]
    Arguments(#[from] ArgumentError),
    /// They are nested too deep.
    #[error("{0}")]
    Depth(String),
}

/// Checks the arguments of a method that this version knows. One that it does not know passes: the hosts decide.
///
/// # Errors
/// It is no method's name, or the arguments do not fit it.
pub(crate) fn check_call(method: &str, args: &Arguments) -> Result<MethodName, CheckError> {
    let name: MethodName = method.parse()?;
    match Catalogue::builtin().find(&name) {
        Some(spec) => drop(spec.bind(args)?),
        None => args.check_depth().map_err(CheckError::Depth)?,
    }
    Ok(name)
}
