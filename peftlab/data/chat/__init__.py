"""Chats through the model's own template: their text, what the assistant wrote of it, and its tokens."""

from peftlab.data.chat.encode import EncodedChat, encode_chats, encode_prompt_text
from peftlab.data.chat.settings import ChatSettings
from peftlab.data.chat.template import ChatTemplate, render_prompt

__all__ = [
    "ChatSettings",
    "ChatTemplate",
    "EncodedChat",
    "encode_chats",
    "encode_prompt_text",
    "render_prompt",
]
