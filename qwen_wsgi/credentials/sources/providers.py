"""The API-key providers, with the names that other programs give to their keys.

From the provider presets of qwen-code 0.24.4; the names for Qwen Cloud, its Chinese twin and Model
Studio are those of LiteLLM 1.110.2 and of public projects.
"""

from __future__ import annotations

from typing import Final, NamedTuple

#: Hosts of the new brands; paths and keys are those of the old ones.
_QWEN_CLOUD: Final = "https://maas.qwencloudapi.com/compatible-mode/v1"
_QIANWEN: Final = "https://maas.qianwenaiapi.com/compatible-mode/v1"
_QWEN_CLOUD_PLAN: Final = "https://token-plan.maas.qwencloudapi.com/compatible-mode/v1"
_QIANWEN_PLAN: Final = "https://token-plan.maas.qianwenaiapi.com/compatible-mode/v1"
#: The only hosts of the Coding Plan: it has none under the new domains.
_CODING_INTL: Final = "https://coding-intl.dashscope.aliyuncs.com/v1"
_CODING: Final = "https://coding.dashscope.aliyuncs.com/v1"
_TOKEN_PLAN_INTL: Final = "https://token-plan.ap-southeast-1.maas.aliyuncs.com/compatible-mode/v1"
_TOKEN_PLAN: Final = "https://token-plan.cn-beijing.maas.aliyuncs.com/compatible-mode/v1"


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
            _CODING,
            _CODING_INTL,
        ),
    ),
    Provider(
        "token-plan",
        "BAILIAN_TOKEN_PLAN_API_KEY",
        (
            _TOKEN_PLAN,
            _TOKEN_PLAN_INTL,
        ),
    ),
    Provider(
        "modelstudio",
        "MODELSTUDIO_API_KEY",
        (
            "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
            "https://dashscope.aliyuncs.com/compatible-mode/v1",
        ),
    ),
    Provider("modelstudio-coding-plan", "MODELSTUDIO_CODING_PLAN_API_KEY", (_CODING_INTL, _CODING)),
    Provider(
        "modelstudio-token-plan",
        "MODELSTUDIO_TOKEN_PLAN_API_KEY",
        (_TOKEN_PLAN_INTL, _TOKEN_PLAN),
    ),
    Provider("qwencloud", "QWENCLOUD_API_KEY", (_QWEN_CLOUD, _QIANWEN)),
    Provider("qwencloud-coding-plan", "QWENCLOUD_CODING_PLAN_API_KEY", (_CODING_INTL, _CODING)),
    Provider(
        "qwencloud-token-plan", "QWENCLOUD_TOKEN_PLAN_API_KEY", (_QWEN_CLOUD_PLAN, _QIANWEN_PLAN)
    ),
    Provider("qianwen", "QIANWEN_API_KEY", (_QIANWEN, _QWEN_CLOUD)),
    Provider("qianwen-coding-plan", "QIANWEN_CODING_PLAN_API_KEY", (_CODING, _CODING_INTL)),
    Provider("qianwen-token-plan", "QIANWEN_TOKEN_PLAN_API_KEY", (_QIANWEN_PLAN, _QWEN_CLOUD_PLAN)),
    Provider("qwen-ai-platform", "QWEN_AI_PLATFORM_API_KEY", (_QIANWEN, _QWEN_CLOUD)),
    Provider(
        "qwen-ai-platform-coding-plan",
        "QWEN_AI_PLATFORM_CODING_PLAN_API_KEY",
        (_CODING, _CODING_INTL),
    ),
    Provider(
        "qwen-ai-platform-token-plan",
        "QWEN_AI_PLATFORM_TOKEN_PLAN_API_KEY",
        (_QIANWEN_PLAN, _QWEN_CLOUD_PLAN),
    ),
    Provider("qwen", "QWEN_API_KEY", (_QIANWEN, _QWEN_CLOUD)),
    Provider("qwen-coding-plan", "QWEN_CODING_PLAN_API_KEY", (_CODING, _CODING_INTL)),
    # pi and its kin: without CN it is the international host, on the older domain.
    Provider("qwen-token-plan", "QWEN_TOKEN_PLAN_API_KEY", (_TOKEN_PLAN_INTL, _QWEN_CLOUD_PLAN)),
    Provider("qwen-token-plan-cn", "QWEN_TOKEN_PLAN_CN_API_KEY", (_TOKEN_PLAN, _QIANWEN_PLAN)),
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
