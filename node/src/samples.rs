//! What the first stage knows of steps under way, so that a batch may name a token that one of
//! them is to sample: the token is put in its place before anything else sees the batch.

use std::collections::VecDeque;

use protocol::{
    Batch, Body, Carried, Input, Sampled, SequenceId, Slice, SliceOutput, StepId, TokenId,
};

use crate::error::StageError;

/// The last steps that the stage has taken.
#[derive(Debug)]
pub struct Samples {
    steps: VecDeque<(StepId, Outcome)>,
    max_steps: usize,
}

#[derive(Debug)]
enum Outcome {
    UnderWay,
    Sampled(Vec<(SequenceId, TokenId)>),
    Failed,
}

impl Samples {
    /// Of a pipeline with so many stages: a step names one that as many others may stand behind.
    pub fn new(num_stages: u32) -> Self {
        Self { steps: VecDeque::new(), max_steps: num_stages as usize + 1 }
    }

    /// The next step's turn: what was sampled is put in the place of what was promised, if all of
    /// that is known by now; `None` until it is.
    ///
    /// # Errors
    /// When a token that it names will never be known.
    pub fn take(
        &mut self,
        step: StepId,
        batch: &mut Carried<Batch>,
    ) -> Option<Result<(), StageError>> {
        let known = match self.resolve(batch) {
            Ok(false) => return None,
            known => known.map(drop),
        };
        self.begin(step);
        Some(known)
    }

    /// The stage has taken this step.
    fn begin(&mut self, step: StepId) {
        if self.steps.len() == self.max_steps {
            self.steps.pop_front();
        }
        self.steps.push_back((step, Outcome::UnderWay));
    }

    /// What the last stage says of a step.
    pub fn hear(&mut self, step: StepId, said: &Body) {
        let Some((_, outcome)) = self.steps.iter_mut().find(|(known, _)| *known == step) else {
            return;
        };
        *outcome = match said {
            Body::Sampled(sampled) => {
                let sampled = sampled.outputs.iter();
                let tokens = sampled.filter_map(|it| Some((it.sequence, it.token?)));
                Outcome::Sampled(tokens.collect())
            }
            Body::Failed(_) => Outcome::Failed,
            Body::Step(_) | Body::Masks(_) => return,
        };
    }

    fn resolve(&self, batch: &mut Carried<Batch>) -> Result<bool, StageError> {
        let mut tokens = Vec::new();
        for (i, slice) in batch.slices.iter().enumerate() {
            let Input::SampledBy(step) = slice.input else { continue };
            match self.token(step, slice)? {
                Some(token) => tokens.push((i, token)),
                None => return Ok(false),
            }
        }
        // Only what changes is made anew.
        for (i, token) in tokens {
            batch.slices[i].input = Input::Tokens(vec![token]);
        }
        Ok(true)
    }

    fn token(&self, step: StepId, slice: &Slice) -> Result<Option<TokenId>, StageError> {
        let sequence = slice.sequence;
        let bad = |what| StageError::BadBatch(format!("sequence {sequence}: step {step} {what}"));
        match self.steps.iter().find(|(known, _)| *known == step) {
            None => Err(bad("isn't under way")),
            Some((_, Outcome::UnderWay)) => Ok(None),
            Some((_, Outcome::Failed)) => Err(StageError::PromiseBroken(step)),
            Some((_, Outcome::Sampled(tokens))) => {
                let found = tokens.iter().find(|(of, _)| *of == sequence);
                found.map(|(_, token)| Some(*token)).ok_or_else(|| bad("samples nothing for it"))
            }
        }
    }
}

/// As much of a result as the first stage needs.
pub fn tokens_of(result: &Body) -> Body {
    let Body::Sampled(sampled) = result else { return result.clone() };
    let only_token = |output: &SliceOutput| SliceOutput {
        sequence: output.sequence,
        position: output.position,
        token: output.token,
        logprobs: None,
        prompt_logprobs: Vec::new(),
    };
    let outputs = sampled.outputs.iter().map(only_token).collect();
    Body::Sampled(Sampled { outputs, ..Sampled::default() })
}

#[cfg(test)]
mod tests {
    use protocol::Failed;

    use super::*;

    fn batch(inputs: &[Input]) -> Carried<Batch> {
        let slice = |(i, input): (usize, &Input)| Slice {
            sequence: SequenceId(i as u64),
            start: 4,
            input: input.clone(),
            first_block: 0,
            blocks: Vec::new(),
            begin: None,
            sample: true,
            next: None,
        };
        let slices = inputs.iter().enumerate().map(slice).collect();
        Batch { finished: Vec::new(), slices }.into()
    }

    fn sampled(tokens: &[Option<u32>]) -> Body {
        let output = |(i, token): (usize, &Option<u32>)| SliceOutput {
            sequence: SequenceId(i as u64),
            position: 4,
            token: token.map(TokenId),
            logprobs: None,
            prompt_logprobs: Vec::new(),
        };
        let outputs = tokens.iter().enumerate().map(output).collect();
        Body::Sampled(Sampled { outputs, ..Sampled::default() })
    }

    #[test]
    fn promised_tokens_take_their_place_once_all_of_them_are_known() {
        let mut samples = Samples::new(2);
        let known = Input::Tokens(vec![TokenId(7), TokenId(8)]);
        let promised = |step| Input::SampledBy(StepId(step));
        let mut mixed = batch(&[known.clone(), promised(5), promised(6)]);
        samples.begin(StepId(5));
        samples.begin(StepId(6));
        assert!(samples.take(StepId(7), &mut mixed).is_none());
        samples.hear(StepId(5), &sampled(&[None, Some(9)]));
        assert!(samples.take(StepId(7), &mut mixed).is_none());
        assert_eq!(mixed.slices[1].input, promised(5), "nothing is changed before");
        samples.hear(StepId(6), &tokens_of(&sampled(&[None, None, Some(3)])));
        samples.take(StepId(7), &mut mixed).unwrap().unwrap();
        assert!(!samples.resolve(&mut batch(&[promised(7)])).unwrap(), "it is under way now");
        let inputs: Vec<_> = mixed.slices.iter().map(|slice| slice.input.clone()).collect();
        let one = |token| Input::Tokens(vec![TokenId(token)]);
        assert_eq!(inputs, [known, one(9), one(3)]);
    }

    #[test]
    fn a_token_that_will_never_come_is_not_waited_for() {
        let mut samples = Samples::new(1);
        let promised = |step| batch(&[Input::SampledBy(StepId(step))]);
        let error =
            |samples: &Samples, step| samples.resolve(&mut promised(step)).unwrap_err().to_string();
        assert!(error(&samples, 1).contains("step 1 isn't under way"));
        samples.begin(StepId(1));
        samples.hear(StepId(1), &sampled(&[None]));
        assert!(error(&samples, 1).contains("step 1 samples nothing for it"));
        samples.begin(StepId(2));
        let failed = Failed { cause: "bad luck".into(), fatal: false, blame: Default::default() };
        samples.hear(StepId(2), &Body::Failed(failed));
        assert!(error(&samples, 2).contains("step 2 failed"));
        // Older ones than any batch may name are forgotten.
        samples.begin(StepId(3));
        assert!(error(&samples, 1).contains("step 1 isn't under way"));
        assert!(!samples.resolve(&mut promised(3)).unwrap());
    }
}
