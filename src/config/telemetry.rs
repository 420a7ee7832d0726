//! OpenTelemetry's own variables as a source of `[tracing]`: `OTEL_EXPORTER_OTLP_ENDPOINT` and its like.
//!
//! They are the weakest source, since they are mostly there for the application beside the gateway. For
//! the same reason nothing in them is a mistake: what the gateway does not understand, it says and leaves.

use std::ffi::OsString;

use percent_encoding::percent_decode_str;

use super::mistakes::Place;
use super::read::{Given, Item, Layer, Written, key};
use super::values::{Attribute, HttpUrl, Title, Value};
use super::{OtlpProtocol, Ratio, SecretHeader};

#[derive(Default)]
pub(super) struct Telemetry {
    pub layer: Layer,
    pub warnings: Vec<String>,
}

/// A variable that is there and not empty, and its name.
#[derive(Clone, Copy)]
struct Set<'v>(&'static str, &'v str);

/// `elsewhere`: another source names a collector. Unless somebody does, how to reach one is the application's
/// alone.
pub(super) fn read(variables: &[(OsString, OsString)], elsewhere: bool) -> Telemetry {
    let mut found = Telemetry::default();
    let set = |name: &'static str| {
        let (_, value) = variables.iter().find(|(variable, _)| variable == name)?;
        let value = value.to_str()?.trim();
        (!value.is_empty()).then_some(Set(name, value))
    };
    // What is said of traces goes before what is said of everything.
    let either = |traces, all| set(traces).or_else(|| set(all));

    let off = set("OTEL_SDK_DISABLED")
        .is_some_and(|Set(_, value)| value.eq_ignore_ascii_case("true"))
        || set("OTEL_TRACES_EXPORTER")
            .is_some_and(|Set(_, value)| !value.split(',').any(|name| name.trim() == "otlp"));
    let endpoint = either(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    );
    // They are about the variables, not about what another source asks for.
    let endpoint = endpoint.filter(|_| !off);
    if let Some(endpoint) = endpoint {
        let url = vec![endpoint.1.to_owned()];
        found.take::<HttpUrl>("tracing.otlp_endpoint", endpoint, url);
    }
    if endpoint.is_some() || elsewhere {
        if let Some(protocol) = either(
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
        ) {
            let protocols = vec![protocol.1.to_owned()];
            found.take::<OtlpProtocol>("tracing.protocol", protocol, protocols);
        }
        if let Some(headers) = either(
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
            "OTEL_EXPORTER_OTLP_HEADERS",
        ) {
            found.take::<SecretHeader>("tracing.headers", headers, pairs(headers.1));
        }
        if let Some(sampler) = set("OTEL_TRACES_SAMPLER") {
            found.sampler(sampler, set("OTEL_TRACES_SAMPLER_ARG"));
        }
    }
    found.name(set("OTEL_SERVICE_NAME"));
    found.attributes(set("OTEL_RESOURCE_ATTRIBUTES"));
    found
}

/// `a=1,b=2` as headers.
fn pairs(text: &str) -> Vec<String> {
    let items = text.split(',').filter(|item| !item.trim().is_empty());
    let header = |item: &str| match item.split_once('=') {
        Some((name, value)) => {
            let value = percent_decode_str(value.trim()).decode_utf8_lossy();
            format!("{}: {value}", name.trim())
        }
        None => item.to_owned(),
    };
    items.map(header).collect()
}

impl Telemetry {
    /// The key has these values, unless one is none.
    fn take<T: Value>(
        &mut self,
        name: &'static str,
        Set(variable, _): Set<'_>,
        texts: Vec<String>,
    ) {
        assert!(
            T::is(key(name).kind),
            "the table has another kind for {name}"
        );
        let place = Place::Variable(variable.to_owned());
        let item = |text: String| Item {
            text,
            written: Written::Plain,
            place: place.clone(),
        };
        match texts.iter().find_map(|text| T::parse(text).err()) {
            Some(problem) => self.warnings.push(format!(
                "{variable}: the value {}, and is left out for {name}",
                problem.what
            )),
            None => {
                let items = texts.into_iter().map(item).collect();
                self.layer.insert(name, Given { items, place });
            }
        }
    }

    fn name(&mut self, set: Option<Set<'_>>) {
        if let Some(set) = set {
            self.take::<Title>("tracing.service_name", set, vec![set.1.to_owned()]);
        }
    }

    /// The service's name may be among them.
    fn attributes(&mut self, set: Option<Set<'_>>) {
        let Some(set) = set else { return };
        let items = set
            .1
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty());
        let (names, others): (Vec<&str>, Vec<&str>) =
            items.partition(|item| item.starts_with("service.name="));
        let others = others.into_iter().map(str::to_owned).collect();
        self.take::<Attribute>("tracing.resource_attributes", set, others);
        if let Some(Ok(Attribute(_, name))) = names.first().map(|item| Attribute::parse(item))
            && !self.layer.contains_key("tracing.service_name")
        {
            self.take::<Title>("tracing.service_name", set, vec![name]);
        }
    }

    /// All of them leave the choice to the parent, if there is one.
    fn sampler(&mut self, sampler: Set<'_>, argument: Option<Set<'_>>) {
        let (from, ratio) = match sampler.1.trim_start_matches("parentbased_") {
            "always_on" => (sampler, "1"),
            "always_off" => (sampler, "0"),
            "traceidratio" => argument.map_or((sampler, "1"), |set| (set, set.1)),
            _ => {
                let Set(variable, value) = sampler;
                self.warnings.push(format!(
                    "{variable}: {value:?} is not known here, and left out for tracing.sample"
                ));
                return;
            }
        };
        self.take::<Ratio>("tracing.sample", from, vec![ratio.to_owned()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Loaded, Sources};

    fn loaded(file: &str, variables: &[(&str, &str)]) -> Loaded {
        let file = super::super::file::File::new("layby.toml", file);
        let sources = Sources {
            env: variables
                .iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            ..Sources::default()
        };
        super::super::read::resolve(Ok(Some(file)), &sources).expect("nothing of it is a mistake")
    }

    fn tracing(file: &str, variables: &[(&str, &str)]) -> super::super::Tracing {
        loaded(&format!("{file}\nworkers.app = \"a\""), variables)
            .config
            .tracing
    }

    fn endpoint(file: &str, variables: &[(&str, &str)]) -> Option<String> {
        tracing(file, variables).endpoint.map(|url| url.to_string())
    }

    const COLLECTOR: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel:4318");

    #[test]
    fn tracing_is_off_until_somebody_names_a_collector() {
        assert_eq!(endpoint("", &[]), None);
        assert_eq!(
            endpoint("tracing.sample = 0.5", &[("OTEL_SERVICE_NAME", "a")]),
            None
        );
        let traces = Some("http://otel:4318/v1/traces".to_owned());
        assert_eq!(endpoint("", &[COLLECTOR]), traces);
        for off in [
            ("OTEL_SDK_DISABLED", "true"),
            ("OTEL_TRACES_EXPORTER", "none"),
        ] {
            assert_eq!(endpoint("", &[COLLECTOR, off]), None, "{off:?}");
            // They are about the variables, not about what the file asks for.
            let file = "tracing.otlp_endpoint = \"http://otel:4318\"";
            assert_eq!(endpoint(file, &[COLLECTOR, off]), traces, "{off:?}");
        }
    }

    #[test]
    fn the_gateways_own_keys_are_the_stronger() {
        let all = [
            COLLECTOR,
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                "https://traces.example/in/v1/traces",
            ),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-team=a%20b, x-set = c"),
            ("OTEL_SERVICE_NAME", "shop"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "service.name=other,deployment.environment.name=prod",
            ),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ];
        let read = tracing("", &all);
        assert_eq!(
            read.endpoint.expect("it is on").as_str(),
            "https://traces.example/in/v1/traces"
        );
        let headers = read
            .headers
            .iter()
            .map(|header| (header.0.as_str(), header.1.to_str().expect("ASCII")));
        assert_eq!(
            headers.collect::<Vec<_>>(),
            [("x-team", "a b"), ("x-set", "c")]
        );
        assert_eq!(read.sample, Ratio(0.25));
        assert_eq!(read.service_name, "shop");
        let attribute = ("deployment.environment.name".to_owned(), "prod".to_owned());
        assert_eq!(read.resource_attributes, [attribute]);

        let file = "[tracing]\notlp_endpoint = \"http://a:1/otlp/\"\nsample = 1\nservice_name = \"gate\"\n[workers]\napp = \"a\"";
        let read = loaded(file, &all).config.tracing;
        assert_eq!(
            read.endpoint.expect("it is on").as_str(),
            "http://a:1/otlp/v1/traces"
        );
        assert_eq!(
            (read.sample, read.service_name.as_str()),
            (Ratio(1.0), "gate")
        );
        let mut all = all.to_vec();
        all.push(("LAYBY_TRACING_SAMPLE", "0.5"));
        assert_eq!(loaded(file, &all).config.tracing.sample, Ratio(0.5));
    }

    #[test]
    fn each_variable_counts_wherever_the_collector_is_named() {
        let about = [
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                "http://the-applications:4318",
            ),
            ("OTEL_TRACES_EXPORTER", "none"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=7f3a"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ];
        let file = "tracing.otlp_endpoint = \"http://otel:4318\"";
        for variables in [&about[..], &about[2..]] {
            let read = tracing(file, variables);
            let endpoint = read.endpoint.expect("the file has it");
            assert_eq!(endpoint.as_str(), "http://otel:4318/");
            assert_eq!(read.headers.len(), 1, "{:?}", read.headers);
            assert_eq!(read.protocol, OtlpProtocol::Grpc);
            assert_eq!(read.sample, Ratio(0.25));
        }
        let mut named = about[2..].to_vec();
        named.push(("LAYBY_TRACING_OTLP_ENDPOINT", "http://otel:4318"));
        assert_eq!(tracing("", &named).headers.len(), 1);

        // Nobody traces: what only the application can make sense of is no news.
        let others = [("OTEL_TRACES_SAMPLER", "jaeger_remote")];
        let quiet = loaded("workers.app = \"a\"", &others);
        assert!(quiet.warnings.is_empty(), "{:?}", quiet.warnings);
        assert!(tracing("", &about[2..]).headers.is_empty());
    }

    #[test]
    fn what_is_meant_for_others_is_said_and_left() {
        let strange = [
            COLLECTOR,
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "nonsense"),
        ];
        let loaded = loaded("workers.app = \"a\"", &strange);
        assert_eq!(loaded.config.tracing.protocol, OtlpProtocol::Http);
        assert_eq!(loaded.warnings.len(), 3, "{:?}", loaded.warnings);
        assert!(
            loaded
                .warnings
                .iter()
                .all(|warning| warning.starts_with("OTEL_"))
        );
    }

    #[test]
    fn a_key_of_a_vendor_is_never_printed() {
        let loaded = loaded(
            "workers.app = \"a\"\ntracing.headers = [\"x-key: hunter2\"]",
            &[COLLECTOR],
        );
        let printed = format!("{loaded:?}{}", loaded.effective);
        assert!(printed.contains("x-key"));
        assert!(!printed.contains("hunter2"));
        let mistakes = Config::from_toml("workers.app = \"a\"\ntracing.headers = [\"hunter2\"]")
            .expect_err("it is no header");
        assert!(!mistakes.to_string().contains("hunter2"), "{mistakes}");
    }

    #[test]
    fn grpcs_port_is_asked_about() {
        let file = "workers.app = \"a\"\ntracing.otlp_endpoint = \"http://otel:4317\"";
        assert!(loaded(file, &[]).warnings[0].contains("4317"));
        let grpc = format!("{file}\ntracing.protocol = \"grpc\"");
        let loaded = loaded(&grpc, &[]);
        assert!(loaded.warnings.is_empty());
        let endpoint = loaded.config.tracing.endpoint.expect("it is on");
        assert_eq!(endpoint.as_str(), "http://otel:4317/");
    }
}
