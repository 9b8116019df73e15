// What stands in an empty text area, in Chinese; the English is in the schemas. ComfyUI translates
// the names of widgets and not this, and a text area shows no name.

export const CHINESE = {
  "AtelierPromptMatrix.subjects": "主体，每行一个",
  "AtelierPromptMatrix.styles": "画风，每行一个（可选）",
  "AtelierPromptMatrix.templates": "提示词模板，每行一个",
  "AtelierGenerateDataset.negative": "负向提示词（可选）",
  "AtelierDatasetFromImages.captions": "描述：一条用于全部图片，或每行一条",
  "AtelierAutoTag.exclude_tags": "排除的标签",
  "AtelierCaptionImages.remove_phrases": "去掉的开头，每行一个",
  "AtelierCurateDataset.choice": "由图库写入",
  "AtelierOptimizer.optimizer_args": "优化器参数：名称=数值 名称=数值",
  "AtelierPreview.prompts": "提示词，每行一条，包含触发词",
  "AtelierPreview.negative": "负向提示词（可选）",
  "AtelierApplyLoRA.block_weights": "分层权重：1, 0, 0, 0, 1, 1, …\nIN04=0.5, OUT*=0",
  "AtelierSaveLoRA.description": "说明",
  "AtelierCompareGrid.lora_files": "LoRA 文件：my_style-*\noutput/atelier/runs/<训练名>/lora/*",
  "AtelierEvaluate.lora_files": "LoRA 文件，留空 = 本次训练的检查点及最终结果",
  "AtelierEvaluate.prompts": "提示词，留空 = 验证图片的描述",
};
