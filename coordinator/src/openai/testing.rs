//! What the tests of the API share: a served model, and tables of refusals.

use std::path::Path;
use std::sync::Arc;

use checkpoint::Checkpoint;
use protocol::config::{self, Http};
use protocol::{ModelId, TokenId};
use serde_json::Value;

use super::{ApiError, Context, Parsed, ServedModel};
use crate::chat_template::ChatTemplate;
use crate::durable::Durables;
use crate::keys::{Access, Keys};
use crate::tokenizer::Tokenizer;

/// A model of 256 tokens of context, called `m`.
pub(crate) struct Served {
    pub(crate) model: ServedModel,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) chat_template: Option<ChatTemplate>,
    pub(crate) config: Http,
    pub(crate) batch: config::Jobs,
    pub(crate) access: Access,
    pub(crate) keys: Keys,
    pub(crate) durables: Durables,
}

impl Served {
    /// With the tokenizer and the chat template of the GLM-4 fixture.
    pub(crate) fn chat() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/glm4/f32");
        let source = Checkpoint::open(&folder).unwrap().tokenizer().unwrap();
        // Tests ask it by any name.
        let config = Http { hosts: vec!["*".into()], ..Http::default() };
        Self {
            model: ServedModel {
                name: "m".into(),
                id: ModelId::default(),
                max_model_len: 256,
                vocab_size: 640,
                hidden_size: 64,
                eos: vec![TokenId(595)],
                sampling: checkpoint::SamplingDefaults::default(),
                created: 1,
            },
            tokenizer: Arc::new(Tokenizer::from_source(&source).unwrap()),
            chat_template: ChatTemplate::from_source(&source, &config),
            config,
            batch: config::Jobs::default(),
            access: Access::anybody(),
            keys: Keys::none(),
            durables: Durables::default(),
        }
    }

    /// The same, with tokens for filling in.
    pub(crate) fn infill() -> Self {
        super::infill::tests::served(["<fim_prefix>", "<fim_suffix>", "<fim_middle>"])
    }

    pub(crate) fn context(&self) -> Context<'_> {
        Context {
            model: &self.model,
            tokenizer: &self.tokenizer,
            chat_template: self.chat_template.as_ref(),
            config: &self.config,
            access: &self.access,
            seed: None,
        }
    }
}

/// Fields that are added to a body, the `param` and the `code` of the refusal.
pub(crate) type Case = (Value, &'static str, Option<&'static str>);

/// Every case is refused as it says, in a sentence that names the field.
pub(crate) fn table(
    served: &Served,
    parse: fn(&[u8], Context<'_>) -> Result<Parsed, ApiError>,
    body: &Value,
    cases: &[Case],
) {
    assert!(parse(body.to_string().as_bytes(), served.context()).is_ok(), "{body}");
    for (more, param, code) in cases {
        let mut body = body.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let error = parse(body.to_string().as_bytes(), served.context()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(*param), "{more}: {error}");
        assert_eq!(error.code, *code, "{more}: {error}");
        assert_eq!(error.kind, "invalid_request_error");
        let word = param.rsplit('.').next().unwrap();
        assert!(error.message.contains(word), "{more}: {error}");
    }
}
