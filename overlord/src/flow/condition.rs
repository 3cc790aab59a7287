//! `when`: a decision on earlier values, `check.rc == 0 && !(kind == 'db')`. Pure.
//!
//! Values are compared as JSON: `==` and `!=` for all, the others for two numbers or two texts. A condition that is one value must be true or false.

use std::cmp::Ordering;

use serde_json::Value;

use super::value::{NoValue, Reference};

/// How long a condition may be.
const LENGTH_MAX: usize = 2000;
/// How deep it may be nested.
const DEPTH_MAX: usize = 50;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Condition {
    Literal(Value),
    Reference(Reference),
    Not(Box<Condition>),
    Both(Box<Condition>, Box<Condition>),
    Either(Box<Condition>, Box<Condition>),
    Compare(Box<Condition>, Comparison, Box<Condition>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    Different,
    Less,
    LessOrEqual,
    More,
    MoreOrEqual,
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Value(Value),
    Reference(Reference),
    Compare(Comparison),
    And,
    Or,
    Not,
    Open,
    Close,
}

impl Token {
    fn shown(&self) -> String {
        match self {
            Self::Value(value) => value.to_string(),
            Self::Reference(reference) => reference.shown(),
            Self::Compare(_) => "a comparison".to_owned(),
            Self::And => "&&".to_owned(),
            Self::Or => "||".to_owned(),
            Self::Not => "!".to_owned(),
            Self::Open => "(".to_owned(),
            Self::Close => ")".to_owned(),
        }
    }
}

/// Why nothing was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Undecided {
    NoValue(NoValue),
    /// The values are of types that cannot be compared so, or the whole is neither true nor false.
    Type(String),
}

impl From<NoValue> for Undecided {
    fn from(no_value: NoValue) -> Self {
        Self::NoValue(no_value)
    }
}

impl Condition {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > LENGTH_MAX {
            return Err(format!("a condition has at most {LENGTH_MAX} bytes"));
        }
        let mut tokens = tokens(text)?;
        tokens.reverse();
        let mut parser = Parser { tokens, depth: 0 };
        let condition = parser.either()?;
        match parser.tokens.pop() {
            None => Ok(condition),
            Some(token) => Err(format!("the condition goes on with {} where it should end", token.shown())),
        }
    }

    pub(crate) fn references(&self) -> Vec<&Reference> {
        match self {
            Self::Literal(_) => Vec::new(),
            Self::Reference(reference) => vec![reference],
            Self::Not(inner) => inner.references(),
            Self::Both(left, right) | Self::Either(left, right) | Self::Compare(left, _, right) => {
                left.references().into_iter().chain(right.references()).collect()
            }
        }
    }

    pub(crate) fn holds(&self, find: &dyn Fn(&Reference) -> Result<Value, NoValue>) -> Result<bool, Undecided> {
        match self.value(find)? {
            Value::Bool(holds) => Ok(holds),
            other => Err(Undecided::Type(format!("the condition comes to {other}, which is neither true nor false"))),
        }
    }

    fn value(&self, find: &dyn Fn(&Reference) -> Result<Value, NoValue>) -> Result<Value, Undecided> {
        Ok(match self {
            Self::Literal(value) => value.clone(),
            Self::Reference(reference) => find(reference)?,
            Self::Not(inner) => Value::Bool(!inner.holds(find)?),
            Self::Both(left, right) => Value::Bool(left.holds(find)? && right.holds(find)?),
            Self::Either(left, right) => Value::Bool(left.holds(find)? || right.holds(find)?),
            Self::Compare(left, comparison, right) => Value::Bool(comparison.holds(&left.value(find)?, &right.value(find)?)?),
        })
    }
}

impl Comparison {
    fn holds(self, left: &Value, right: &Value) -> Result<bool, Undecided> {
        if let Self::Equal | Self::Different = self {
            // 1 and 1.0 are one number.
            let are_equal = numbers(left, right).map_or_else(|| left == right, Ordering::is_eq);
            return Ok(are_equal == (self == Self::Equal));
        }
        let order = match (left, right) {
            (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
            _ => numbers(left, right),
        };
        let order = order
            .ok_or_else(|| Undecided::Type(format!("{left} and {right} cannot be compared: they are not two numbers or two texts")))?;
        Ok(match self {
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::More => order.is_gt(),
            Self::MoreOrEqual => order.is_ge(),
            Self::Equal | Self::Different => order.is_eq(),
        })
    }
}

/// How two numbers stand to each other; whole ones to the last digit.
fn numbers(left: &Value, right: &Value) -> Option<Ordering> {
    let whole = |value: &Value| value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
    match (whole(left), whole(right)) {
        (Some(left), Some(right)) => Some(left.cmp(&right)),
        _ => left.as_f64()?.partial_cmp(&right.as_f64()?),
    }
}

/// The tokens still to come, the next one last.
struct Parser {
    tokens: Vec<Token>,
    depth: usize,
}

impl Parser {
    fn takes(&mut self, token: &Token) -> bool {
        let is_next = self.tokens.last() == Some(token);
        if is_next {
            self.tokens.pop();
        }
        is_next
    }

    fn either(&mut self) -> Result<Condition, String> {
        let mut left = self.both()?;
        while self.takes(&Token::Or) {
            left = Condition::Either(Box::new(left), Box::new(self.both()?));
        }
        Ok(left)
    }

    fn both(&mut self) -> Result<Condition, String> {
        let mut left = self.comparison()?;
        while self.takes(&Token::And) {
            left = Condition::Both(Box::new(left), Box::new(self.comparison()?));
        }
        Ok(left)
    }

    fn comparison(&mut self) -> Result<Condition, String> {
        let left = self.one()?;
        match self.tokens.last() {
            Some(Token::Compare(comparison)) => {
                let comparison = *comparison;
                self.tokens.pop();
                Ok(Condition::Compare(Box::new(left), comparison, Box::new(self.one()?)))
            }
            _ => Ok(left),
        }
    }

    fn one(&mut self) -> Result<Condition, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("a condition may be nested {DEPTH_MAX} deep at most"));
        }
        let one = self.one_at_this_depth();
        self.depth -= 1;
        one
    }

    fn one_at_this_depth(&mut self) -> Result<Condition, String> {
        match self.tokens.pop() {
            Some(Token::Value(value)) => Ok(Condition::Literal(value)),
            Some(Token::Reference(reference)) => Ok(Condition::Reference(reference)),
            Some(Token::Not) => Ok(Condition::Not(Box::new(self.one()?))),
            Some(Token::Open) => {
                let inner = self.either()?;
                if self.takes(&Token::Close) { Ok(inner) } else { Err("a parenthesis is not closed".to_owned()) }
            }
            Some(token) => Err(format!("a value is missing before {}", token.shown())),
            None => Err("the condition ends where a value is missing".to_owned()),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    const SIGNS: [(&str, Token); 11] = [
        ("&&", Token::And),
        ("||", Token::Or),
        ("==", Token::Compare(Comparison::Equal)),
        ("!=", Token::Compare(Comparison::Different)),
        ("<=", Token::Compare(Comparison::LessOrEqual)),
        (">=", Token::Compare(Comparison::MoreOrEqual)),
        ("<", Token::Compare(Comparison::Less)),
        (">", Token::Compare(Comparison::More)),
        ("!", Token::Not),
        ("(", Token::Open),
        (")", Token::Close),
    ];
    let (mut tokens, mut rest) = (Vec::new(), text.trim_start());
    while let Some(first) = rest.chars().next() {
        let (token, behind) = if let Some((sign, token)) = SIGNS.iter().find(|(sign, _)| rest.starts_with(sign)) {
            (token.clone(), rest.get(sign.len()..).unwrap_or_default())
        } else if first == '\'' || first == '"' {
            let (inside, behind) = rest.get(1..).unwrap_or_default().split_once(first).ok_or("a text is not closed")?;
            (Token::Value(Value::from(inside)), behind)
        } else {
            word(rest)?
        };
        tokens.push(token);
        rest = behind.trim_start();
    }
    Ok(tokens)
}

/// A number, `true`, `false`, `null`, or a reference.
fn word(text: &str) -> Result<(Token, &str), String> {
    let mut is_quoted = false;
    let is_end = |letter: char| {
        is_quoted ^= letter == '"';
        !is_quoted && (letter.is_whitespace() || "&|=!<>()'".contains(letter))
    };
    let (word, behind) = text.split_at(text.find(is_end).unwrap_or(text.len()));
    let token = match serde_json::from_str::<Value>(word) {
        Ok(value @ (Value::Number(_) | Value::Bool(_) | Value::Null)) => Token::Value(value),
        _ => Token::Reference(Reference::parse(word)?),
    };
    Ok((token, behind))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use serde_json::json;

    use super::super::value::part;
    use super::*;

    fn holds(text: &str) -> Result<bool, Undecided> {
        let known = json!({ "check": { "rc": 0, "a b": 2 }, "kind": "db", "flag": true, "half": 0.5 });
        Condition::parse(text).unwrap().holds(&|reference| {
            let value = known.get(&reference.name).and_then(|value| part(value, &reference.path));
            value.cloned().ok_or_else(|| NoValue::Missing(reference.shown()))
        })
    }

    #[test]
    fn decisions_are_made_on_values() {
        for (text, expected) in [
            ("check.rc == 0", true),
            ("check.rc==0.0", true),
            ("check[\"a b\"] > half && flag", true),
            ("!(kind == 'db') || check.rc != 0", false),
            ("kind >= \"da\"", true),
            ("true && !false", true),
            ("kind == null", false),
            ("false && nothing.there", false),
            ("-1 < check.rc", true),
        ] {
            assert_eq!(holds(text), Ok(expected), "{text}");
        }
        assert!(matches!(holds("kind < 3"), Err(Undecided::Type(_))));
        assert!(matches!(holds("kind"), Err(Undecided::Type(_))));
        assert_eq!(holds("nothing == 1"), Err(NoValue::Missing("nothing".into()).into()));
    }

    #[test]
    fn what_is_no_condition_is_told() {
        for bad in ["", "a ==", "== 1", "(a", "a b", "a & b", "'x", "a == 1)", &"(".repeat(1000), &"!".repeat(1999)] {
            assert!(Condition::parse(bad).is_err(), "{bad}");
        }
    }
}
