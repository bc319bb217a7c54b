//! The chart rendered with a set of values, and questions to what came out.

use crate::tools::{deploy, python, run};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::PathBuf};

pub const NAMESPACE: &str = "images";

/// The value sets of `ci/`, each a way to run hydrant.
pub const SETS: [&str; 3] = ["trial", "aws", "fleet"];

/// What Helm made of one set of values.
#[derive(Debug)]
pub struct Rendered {
    pub lint: Vec<String>,
    pub problems: Vec<String>,
    pub refused: Option<String>,
    pub notes: String,
    pub objects: Vec<Value>,
}

/// Renders with the values of `ci/<set>-values.yaml`; `None` where Helm is not installed.
pub async fn set(set: &str) -> Option<Rendered> {
    helm("render", values(set)).await
}

/// The same, linted, and with every object held against the schemas of Kubernetes.
pub async fn checked(set: &str) -> Option<Rendered> {
    helm("check", values(set)).await
}

fn values(set: &str) -> PathBuf {
    deploy(&format!("helm/hydrant/ci/{set}-values.yaml"))
}

/// Renders with these values.
pub async fn with_values(yaml: &str) -> Option<Rendered> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), yaml).unwrap();
    helm("render", file.path().to_owned()).await
}

async fn helm(task: &str, values: PathBuf) -> Option<Rendered> {
    let python = python("helm_python, kubernetes_validate", "the Helm chart").await?;
    let script = hydrant_testkit::binaries::workspace_root().join("tests/deploy/helm.py");
    let args = [
        script.as_os_str(),
        task.as_ref(),
        deploy("helm/hydrant").as_os_str(),
        values.as_os_str(),
        "hydrant".as_ref(),
        NAMESPACE.as_ref(),
    ]
    .map(std::ffi::OsStr::to_owned);
    let told = run(&python, args).await.success();
    let value: Value = serde_json::from_slice(&told.stdout).expect("helm.py prints JSON");
    let texts = |key: &str| {
        let list = value[key].as_array().into_iter().flatten();
        list.map(|text| text.as_str().unwrap_or_default().to_owned()).collect()
    };
    Some(Rendered {
        lint: texts("lint"),
        problems: texts("problems"),
        refused: value["refused"].as_str().map(str::to_owned),
        notes: value["notes"].as_str().unwrap_or_default().to_owned(),
        objects: value["objects"].as_array().cloned().unwrap_or_default(),
    })
}

impl Rendered {
    pub fn of_kind<'a>(&'a self, kind: &str) -> impl Iterator<Item = &'a Value> {
        self.objects.iter().filter(move |object| object["kind"] == kind)
    }

    pub fn named(&self, kind: &str, name: &str) -> &Value {
        let found = self.of_kind(kind).find(|object| object["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
    }

    /// Every pod that the objects make, with the name of what makes it.
    pub fn pods(&self) -> Vec<(String, &Value)> {
        const MAKERS: [&str; 3] = ["Deployment", "StatefulSet", "Job"];
        let makers = self.objects.iter().filter(|o| MAKERS.iter().any(|kind| o["kind"] == *kind));
        let pod = |maker: &'static str, object: &Value| {
            format!("{maker} {}", object["metadata"]["name"].as_str().unwrap_or_default())
        };
        makers.map(|object| (pod("pod of", object), &object["spec"]["template"])).collect()
    }

    /// The pod of a role.
    pub fn pod(&self, role: &str) -> &Value {
        &self.named("Deployment", &format!("hydrant-{role}"))["spec"]["template"]
    }

    /// The resources that the chart configures, as TOML.
    pub fn resources(&self) -> &str {
        let text = &self.named("ConfigMap", "hydrant-config")["data"]["hydrant.toml"];
        text.as_str().expect("the document is text")
    }
}

/// All containers of a pod, those that run before the others first.
pub fn containers(pod: &Value) -> Vec<&Value> {
    let of = |key| pod["spec"][key].as_array().into_iter().flatten();
    of("initContainers").chain(of("containers")).collect()
}

/// The variables of a container that have their value in the manifest.
pub fn variables(container: &Value) -> BTreeMap<String, String> {
    let list = container["env"].as_array().into_iter().flatten();
    let pair = |entry: &Value| {
        let value = entry["value"].as_str()?;
        Some((entry["name"].as_str()?.to_owned(), value.to_owned()))
    };
    list.filter_map(pair).collect()
}

pub fn labels(object: &Value) -> BTreeMap<String, String> {
    map(&object["metadata"]["labels"])
}

pub fn map(value: &Value) -> BTreeMap<String, String> {
    let pairs = value.as_object().into_iter().flatten();
    pairs.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect()
}

/// Whether a selector of labels picks something with these.
pub fn selects(selector: &Value, labels: &BTreeMap<String, String>) -> bool {
    map(selector).iter().all(|(key, value)| labels.get(key) == Some(value))
}
