"""The endpoint: a model version behind an OpenAI-compatible API, on Ray Serve and vLLM.

`endpoint` starts and stops it, `app` is what a Serve configuration names for the same, `replica` is what Ray
Serve runs, `weights` brings the checkpoint to it, `api` is what clients see, `limits` what they may ask for,
`proxy` what Ray Serve's proxy answers itself, and `adapter` holds every import from vLLM."""
