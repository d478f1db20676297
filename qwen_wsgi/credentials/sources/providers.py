"""The API-key providers that qwen-code knows, with its names for their keys.

From the provider presets of qwen-code 0.24.4.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Provider(NamedTuple):
    """One provider.

    Attributes:
        name: the account's name.
        key_env: the variable that holds the API key.
        base_urls: possible endpoints of the key; the first is the default. A key works with the
            host of its own plan and region only.
    """

    name: str
    key_env: str
    base_urls: tuple[str, ...]

    @property
    def base_url_env(self) -> str:
        """The variable that overrides the base URL."""
        return self.key_env.removesuffix("_API_KEY") + "_BASE_URL"


PROVIDERS: Final = (
    Provider(
        "dashscope",
        "DASHSCOPE_API_KEY",
        (
            "https://dashscope.aliyuncs.com/compatible-mode/v1",
            "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
            "https://dashscope-us.aliyuncs.com/compatible-mode/v1",
            "https://cn-hongkong.dashscope.aliyuncs.com/compatible-mode/v1",
        ),
    ),
    Provider(
        "coding-plan",
        "BAILIAN_CODING_PLAN_API_KEY",
        (
            "https://coding.dashscope.aliyuncs.com/v1",
            "https://coding-intl.dashscope.aliyuncs.com/v1",
        ),
    ),
    Provider(
        "token-plan",
        "BAILIAN_TOKEN_PLAN_API_KEY",
        (
            "https://token-plan.cn-beijing.maas.aliyuncs.com/compatible-mode/v1",
            "https://token-plan.ap-southeast-1.maas.aliyuncs.com/compatible-mode/v1",
        ),
    ),
    Provider("deepseek", "DEEPSEEK_API_KEY", ("https://api.deepseek.com",)),
    Provider("grok", "XAI_API_KEY", ("https://api.x.ai/v1",)),
    Provider(
        "minimax",
        "MINIMAX_API_KEY",
        ("https://api.minimax.io/v1", "https://api.minimaxi.com/v1"),
    ),
    Provider(
        "zai",
        "ZAI_API_KEY",
        ("https://api.z.ai/api/paas/v4", "https://api.z.ai/api/coding/paas/v4"),
    ),
    Provider(
        "moonshot",
        "MOONSHOT_API_KEY",
        ("https://api.moonshot.ai/v1", "https://api.moonshot.cn/v1"),
    ),
    Provider("idealab", "IDEALAB_API_KEY", ("https://idealab.alibaba-inc.com/api/openai/v1",)),
    Provider("modelscope", "MODELSCOPE_API_KEY", ("https://api-inference.modelscope.cn/v1",)),
    Provider("openrouter", "OPENROUTER_API_KEY", ("https://openrouter.ai/api/v1",)),
    Provider("requesty", "REQUESTY_API_KEY", ("https://router.requesty.ai/v1",)),
)


def by_key_env(name: str) -> Provider | None:
    """Find the provider whose key has this name."""
    return next((each for each in PROVIDERS if each.key_env == name), None)


def by_base_url(url: str) -> Provider | None:
    """Find the provider that has this base URL in any region."""
    return next((each for each in PROVIDERS if url in each.base_urls), None)
